// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"redoubt/internal/coord/kit"
)

// lockDir takes the directory for this process alone, until the file is closed or the process dies.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("data directory %s is in use by another process; stop it or choose another directory: %w", dir, err)
	}
	return f, nil
}

// identity says whose directory this is.
type identity struct {
	Format   int    `json:"format"`
	Member   string `json:"member"`
	Store    string `json:"store"`    // given by the first controller of the deployment; "" until this member learned it
	Seat     string `json:"seat"`     // random name of this directory: a member with another one has lost its data
	Checksum uint32 `json:"checksum"` // CRC-32C of the fields above, as %d %q %q %q
}

const identityFormat = 1

func (i identity) sum() uint32 {
	return crc32.Checksum(fmt.Appendf(nil, "%d %q %q %q", i.Format, i.Member, i.Store, i.Seat), castagnoli)
}

// openIdentity reads the identity of the directory, or writes a first one if it is empty.
func openIdentity(dir, member string) (identity, error) {
	name := filepath.Join(dir, "identity.json")
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		if old, _ := filepath.Glob(filepath.Join(dir, journalPattern)); len(old) > 0 {
			return identity{}, fmt.Errorf("%s holds a log but no identity.json; restore the file, or empty the directory and join again", dir)
		}
		id := identity{Format: identityFormat, Member: member, Seat: newName()}
		return id, writeIdentity(dir, id)
	}
	if err != nil {
		return identity{}, fmt.Errorf("read identity: %w", err)
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil || id.sum() != id.Checksum {
		return identity{}, fmt.Errorf("%s is damaged (checksum); remove this member, empty the directory and join again", name)
	}
	if id.Format != identityFormat {
		return identity{}, fmt.Errorf("%s has format %d, this version knows %d; use the version that wrote it", name, id.Format, identityFormat)
	}
	if id.Member != member {
		return identity{}, fmt.Errorf("%s belongs to member %q, not %q; check the data directory and the member's id", dir, id.Member, member)
	}
	return id, nil
}

func writeIdentity(dir string, id identity) error {
	id.Checksum = id.sum()
	data, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := writeFile(filepath.Join(dir, "identity.json"), append(data, '\n')); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// writeFile replaces a file so that a crash leaves either the old or the new one.
func writeFile(name string, data []byte) error {
	f, err := os.OpenFile(name+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func fdatasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

// votes keeps Raft's few durable values (term, vote) in one file of two slots, written in turn, each with a number and
// a checksum: a torn write leaves the slot before it. One fsync per change, which an election waits for several times.
// It implements raft.StableStore.
type votes struct {
	mu     sync.Mutex
	f      *os.File
	number uint64
	values map[string][]byte
}

const (
	voteSlot = 4096 // bytes
	voteMax  = voteSlot - 16
)

var errNoValue = errors.New("not found") // the text that package raft compares with

func openVotes(dir string) (*votes, error) {
	name := filepath.Join(dir, "votes.rdb")
	data, err := os.ReadFile(name)
	fresh := errors.Is(err, os.ErrNotExist)
	if err != nil && !fresh {
		return nil, fmt.Errorf("read votes: %w", err)
	}
	v := &votes{values: map[string][]byte{}}
	good := false
	for at := 0; at+voteSlot <= len(data); at += voteSlot {
		if number, values, ok := decodeVotes(data[at : at+voteSlot]); ok && (!good || number > v.number) {
			good, v.number, v.values = true, number, values
		}
	}
	if !fresh && !good {
		return nil, fmt.Errorf("%s is damaged: neither copy has a valid checksum; remove this member, empty the directory and join again", name)
	}
	if fresh {
		first, err := encodeVotes(0, v.values)
		if err == nil {
			err = writeFile(name, append(first, make([]byte, voteSlot)...))
		}
		if err != nil {
			return nil, fmt.Errorf("write votes: %w", err)
		}
	}
	if v.f, err = os.OpenFile(name, os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("open votes: %w", err)
	}
	return v, nil
}

func encodeVotes(number uint64, values map[string][]byte) ([]byte, error) {
	body, err := json.Marshal(values)
	if err != nil || len(body) > voteMax {
		return nil, fmt.Errorf("encode %d bytes of votes: %w", len(body), err)
	}
	slot := make([]byte, 16, voteSlot)
	binary.LittleEndian.PutUint64(slot[4:], number)
	binary.LittleEndian.PutUint32(slot[12:], uint32(len(body)))
	slot = append(slot, body...)
	binary.LittleEndian.PutUint32(slot, crc32.Checksum(slot[4:], castagnoli))
	return slot[:voteSlot], nil
}

func decodeVotes(slot []byte) (number uint64, values map[string][]byte, ok bool) {
	size := binary.LittleEndian.Uint32(slot[12:])
	if size > voteMax || crc32.Checksum(slot[4:16+size], castagnoli) != binary.LittleEndian.Uint32(slot) {
		return 0, nil, false
	}
	if err := json.Unmarshal(slot[16:16+size], &values); err != nil || values == nil {
		return 0, nil, false
	}
	return binary.LittleEndian.Uint64(slot[4:]), values, true
}

// Set implements raft.StableStore.
func (v *votes) Set(key, value []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	next := make(map[string][]byte, len(v.values)+1)
	for k, old := range v.values {
		next[k] = old
	}
	next[string(key)] = append([]byte{}, value...)
	slot, err := encodeVotes(v.number+1, next)
	if err != nil {
		return err
	}
	if _, err = v.f.WriteAt(slot, int64((v.number+1)%2)*voteSlot); err == nil {
		err = fdatasync(v.f)
	}
	if err != nil {
		return fmt.Errorf("write votes: %w", err)
	}
	v.number++
	v.values = next
	return nil
}

// Get implements raft.StableStore.
func (v *votes) Get(key []byte) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if value, ok := v.values[string(key)]; ok {
		return value, nil
	}
	return nil, errNoValue
}

// SetUint64 implements raft.StableStore.
func (v *votes) SetUint64(key []byte, n uint64) error {
	return v.Set(key, binary.LittleEndian.AppendUint64(nil, n))
}

// GetUint64 implements raft.StableStore.
func (v *votes) GetUint64(key []byte) (uint64, error) {
	value, err := v.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("value of %q has %d bytes, not 8", key, len(value))
	}
	return binary.LittleEndian.Uint64(value), nil
}

func (v *votes) Close() error { return v.f.Close() }

// encodeLog appends a log entry; place is its position in the batch that is written with one fsync.
func encodeLog(b []byte, l *raft.Log, place uint64) []byte {
	b = binary.AppendUvarint(b, l.Index)
	b = binary.AppendUvarint(b, place)
	b = binary.AppendUvarint(b, l.Term)
	b = append(b, byte(l.Type))
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = binary.AppendVarint(b, at)
	b = kit.Append(b, l.Data)
	return kit.Append(b, l.Extensions)
}

func decodeLog(data []byte, l *raft.Log) error {
	d := kit.NewDecoder(data)
	*l = raft.Log{Index: d.Uint()}
	d.Uint() // the place in its batch matters only when the log is opened
	l.Term, l.Type = d.Uint(), raft.LogType(d.Byte())
	if at := d.Int(); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	l.Data, l.Extensions = d.Bytes(), d.Bytes()
	return d.Finish("log entry")
}
