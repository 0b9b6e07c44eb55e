// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"sort"
	"sync"

	"github.com/hashicorp/raft"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// machine is the replicated state: documents, the name of the deployment, and how often a controller took office. It
// implements raft.FSM and raft.ConfigurationStore; package raft calls Apply, Snapshot and Restore from one goroutine.
// The other methods are safe for concurrent use.
type machine struct {
	changed    func(coord.Doc)          // called for every new version, in order, without the lock
	configured func(raft.Configuration) // called for every committed membership
	named      func(deployment string)  // called when the deployment has its name

	mu    sync.RWMutex
	docs  map[string]coord.Doc
	store string            // name of the deployment
	terms uint64            // controllers that took office
	seats map[string]string // directory of every member that was heard of, by member
}

// The commands of the log: the first byte of an entry.
const (
	commandSwap = 1 // old revision, key, value
	commandLead = 2 // proposed name of the deployment, used by the first one
	commandSeat = 3 // member, name of its directory; the first one stays until the member is removed
)

// swapped is the outcome of a swap.
type swapped struct {
	rev coord.Rev // the new revision, or the present one if it conflicts
	ok  bool
}

// led is the outcome of taking office.
type led struct{ term, raftTerm uint64 }

func swapCommand(key string, value []byte, old coord.Rev) []byte {
	b := make([]byte, 0, 32+len(key)+len(value))
	b = binary.AppendUvarint(append(b, commandSwap), uint64(old))
	return kit.Append(kit.Append(b, key), value)
}

func seatCommand(member, seat string) []byte {
	return kit.Append(kit.Append([]byte{commandSeat}, member), seat)
}

func leadCommand(name string) []byte { return kit.Append([]byte{commandLead}, name) }

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any {
	d := kit.NewDecoder(l.Data)
	switch op := d.Byte(); op {
	case commandSwap:
		old, key, value := coord.Rev(d.Uint()), string(d.Bytes()), d.Bytes()
		if err := d.Finish("swap command"); err != nil {
			return err
		}
		return m.swap(key, value, old)
	case commandLead:
		name := string(d.Bytes())
		if err := d.Finish("lead command"); err != nil {
			return err
		}
		return m.lead(name, l.Term)
	case commandSeat:
		member, seat := string(d.Bytes()), string(d.Bytes())
		if err := d.Finish("seat command"); err != nil {
			return err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.seats[member] == "" {
			m.seats[member] = seat
		}
		return nil
	default:
		return fmt.Errorf("log entry %d has command %d, which this version does not know; upgrade this member", l.Index, op)
	}
}

func (m *machine) swap(key string, value []byte, old coord.Rev) swapped {
	m.mu.Lock()
	now := m.docs[key].Rev
	if now != old {
		m.mu.Unlock()
		return swapped{rev: now}
	}
	doc := coord.Doc{Key: key, Value: bytes.Clone(value), Rev: now + 1}
	m.docs[key] = doc
	m.mu.Unlock()
	m.changed(doc)
	return swapped{rev: doc.Rev, ok: true}
}

func (m *machine) lead(name string, raftTerm uint64) led {
	m.mu.Lock()
	m.terms++
	if m.store == "" {
		m.store = name
	}
	out, store := led{m.terms, raftTerm}, m.store
	m.mu.Unlock()
	m.named(store)
	return out
}

// StoreConfiguration implements raft.ConfigurationStore. Removed members lose their seats, so that they can join again.
func (m *machine) StoreConfiguration(_ uint64, c raft.Configuration) {
	m.mu.Lock()
	for id := range m.seats {
		if !isMember(&c, id) {
			delete(m.seats, id)
		}
	}
	m.mu.Unlock()
	m.configured(c)
}

// seat returns the directory that belongs to the member, "" when none is known.
func (m *machine) seat(member string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.seats[member]
}

// get returns a document; its Value must not be changed.
func (m *machine) get(key string) (coord.Doc, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	doc, ok := m.docs[key]
	return doc, ok
}

// all returns every document by key; the Values must not be changed.
func (m *machine) all() []coord.Doc {
	m.mu.RLock()
	defer m.mu.RUnlock()
	docs := make([]coord.Doc, 0, len(m.docs))
	for _, d := range m.docs {
		docs = append(docs, d)
	}
	sort.Slice(docs, func(i, k int) bool { return docs[i].Key < docs[k].Key })
	return docs
}

const (
	snapshotMagic = "RDBTSNP1"
	snapshotMax   = 1 << 30 // bytes
)

// snapshot is the whole state at one moment.
type snapshot struct {
	docs  []coord.Doc
	store string
	terms uint64
	seats map[string]string
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	docs := m.all()
	m.mu.RLock()
	defer m.mu.RUnlock()
	return &snapshot{docs: docs, store: m.store, terms: m.terms, seats: maps.Clone(m.seats)}, nil
}

func (s *snapshot) encode() []byte {
	b := binary.AppendUvarint([]byte(snapshotMagic), s.terms)
	b = kit.Append(b, s.store)
	b = binary.AppendUvarint(b, uint64(len(s.docs)))
	for _, d := range s.docs {
		b = kit.Append(b, d.Key)
		b = binary.AppendUvarint(b, uint64(d.Rev))
		b = kit.Append(b, d.Value)
	}
	b = binary.AppendUvarint(b, uint64(len(s.seats)))
	for member, seat := range s.seats {
		b = kit.Append(kit.Append(b, member), seat)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeSnapshot(data []byte) (*snapshot, error) {
	n := len(data) - 4
	if n < len(snapshotMagic) || string(data[:len(snapshotMagic)]) != snapshotMagic ||
		crc32.Checksum(data[:n], castagnoli) != binary.LittleEndian.Uint32(data[n:]) {
		return nil, fmt.Errorf("snapshot has a wrong checksum: %w", kit.ErrFrame)
	}
	d := kit.NewDecoder(data[len(snapshotMagic):n])
	s := &snapshot{terms: d.Uint(), store: string(d.Bytes()), seats: map[string]string{}}
	for count := d.Uint(); count > 0 && !d.Bad(); count-- {
		s.docs = append(s.docs, coord.Doc{Key: string(d.Bytes()), Rev: coord.Rev(d.Uint()), Value: d.Bytes()})
	}
	for count := d.Uint(); count > 0 && !d.Bad(); count-- {
		member := string(d.Bytes())
		s.seats[member] = string(d.Bytes())
	}
	return s, d.Finish("snapshot")
}

// Persist implements raft.FSMSnapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s.encode()); err != nil {
		_ = sink.Cancel()
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s *snapshot) Release() {}

// Restore implements raft.FSM.
func (m *machine) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	data, err := io.ReadAll(io.LimitReader(r, snapshotMax))
	if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	s, err := decodeSnapshot(data)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.docs = make(map[string]coord.Doc, len(s.docs))
	for _, d := range s.docs {
		m.docs[d.Key] = d
	}
	m.store, m.terms, m.seats = s.store, s.terms, s.seats
	m.mu.Unlock()
	if s.store != "" {
		m.named(s.store)
	}
	for _, d := range s.docs {
		m.changed(d)
	}
	return nil
}
