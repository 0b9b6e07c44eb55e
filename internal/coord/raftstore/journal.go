// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// journal is the Raft log on disk: files of records, each with its own checksum, appended with one write and one fsync
// per batch. It implements raft.LogStore and raft.MonotonicLogStore.
//
// When it opens, it reads every record. A bad record at the very end is a write that a crash tore before it was
// acknowledged: it is cut off. A bad record with good ones behind it is damage, and the journal refuses to open.
//
// After a failed write or fsync nobody knows what is behind the last entry that was acknowledged. It is cut off before
// anything else is written there; until that works, because the disk has space again, the journal takes nothing.
type journal struct {
	dir     string
	rollAt  int64 // start a new file when the last one is larger, in bytes
	writeAt func(f *os.File, data []byte, at int64) (int, error)
	syncDir func(string) error
	opened  time.Time
	since   atomic.Int64 // how long after opened the append under way began, 0: none is

	mu     sync.RWMutex
	files  []*journalFile // by first index; no gaps
	torn   error          // why the last append failed; what it has left is not cut off yet
	broken error          // nothing is taken until the journal is reopened
	buf    []byte
}

type journalFile struct {
	f       *os.File
	first   uint64  // index of the first record
	offsets []int64 // of every record
	size    int64
}

const (
	journalMagic   = "RDBTLOG1"
	journalHeader  = 16          // magic, first index
	recordMagic    = 0x7dab1e0f  // chosen at random
	recordHeader   = 12          // magic, length, checksum of the payload
	recordMax      = 4 << 20     // bytes; far above the largest command
	journalRoll    = 16 << 20    // bytes
	journalPattern = "log-*.rdb" // the index is in hexadecimal, so that names sort
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errJournalDamaged = errors.New("the log on disk is damaged in the middle")

func openJournal(dir string) (*journal, error) {
	j := &journal{dir: dir, rollAt: journalRoll, writeAt: (*os.File).WriteAt, syncDir: syncDir, opened: time.Now()}
	names, err := filepath.Glob(filepath.Join(dir, journalPattern))
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	for i, name := range names {
		jf, err := openJournalFile(name, i == len(names)-1)
		if err == nil && jf == nil {
			continue // a new last file whose header was torn: it held nothing
		}
		if err == nil && len(j.files) > 0 && jf.first != j.files[len(j.files)-1].next() {
			_ = jf.f.Close()
			err = fmt.Errorf("%s begins at %d, the file before it ends before %d: %w", name, jf.first, j.files[len(j.files)-1].next(), errJournalDamaged)
		}
		if err != nil {
			return nil, errors.Join(err, j.Close())
		}
		j.files = append(j.files, jf)
	}
	return j, nil
}

// openJournalFile reads and checks one file. Only in the last one may the end be torn.
func openJournalFile(name string, last bool) (*journalFile, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	if len(data) < journalHeader || string(data[:8]) != journalMagic {
		if last && len(data) <= journalHeader {
			return nil, os.Remove(name)
		}
		return nil, fmt.Errorf("%s has no valid header: %w", name, errJournalDamaged)
	}
	jf := &journalFile{first: binary.LittleEndian.Uint64(data[8:])}
	at := journalHeader
	for at < len(data) {
		n, ok := record(data[at:], jf.next())
		if !ok {
			break
		}
		jf.offsets = append(jf.offsets, int64(at))
		at += n
	}
	if at < len(data) {
		if !last || laterRecord(data[at:], jf.next()) {
			return nil, fmt.Errorf("%s: record %d at byte %d: %w", name, jf.next(), at, errJournalDamaged)
		}
	}
	if jf.f, err = os.OpenFile(name, os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	jf.size = int64(at)
	if at < len(data) {
		if err := errors.Join(jf.f.Truncate(jf.size), jf.f.Sync()); err != nil {
			return nil, errors.Join(fmt.Errorf("cut the torn end of %s: %w", name, err), jf.f.Close())
		}
	}
	return jf, nil
}

// record checks the record at the start of data and returns its length with its header.
func record(data []byte, index uint64) (n int, ok bool) {
	if len(data) < recordHeader || binary.LittleEndian.Uint32(data) != recordMagic {
		return 0, false
	}
	size := int(binary.LittleEndian.Uint32(data[4:]))
	if size > recordMax || size > len(data)-recordHeader {
		return 0, false
	}
	payload := data[recordHeader : recordHeader+size]
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(data[8:]) {
		return 0, false
	}
	got, _ := binary.Uvarint(payload)
	return recordHeader + size, got == index
}

// laterRecord reports whether a record of a later batch follows somewhere behind a bad one. A torn batch is one write of
// several records, of which later ones may have reached the disk alone. A record of a later batch was written after the
// fsync of the bad one, so it proves damage.
func laterRecord(data []byte, index uint64) bool {
	for i := 1; i+recordHeader <= len(data); i++ {
		if binary.LittleEndian.Uint32(data[i:]) != recordMagic {
			continue
		}
		size := int(binary.LittleEndian.Uint32(data[i+4:]))
		if size > recordMax || size > len(data)-i-recordHeader {
			continue
		}
		payload := data[i+recordHeader : i+recordHeader+size]
		got, n := binary.Uvarint(payload)
		place, m := binary.Uvarint(payload[max(n, 0):])
		if n > 0 && m > 0 && got > index+place && crc32.Checksum(payload, castagnoli) == binary.LittleEndian.Uint32(data[i+8:]) {
			return true
		}
	}
	return false
}

// next is the index that the file's next record will have.
func (f *journalFile) next() uint64 { return f.first + uint64(len(f.offsets)) }

// IsMonotonic implements raft.MonotonicLogStore: there are never gaps.
func (j *journal) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (j *journal) FirstIndex() (uint64, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if len(j.files) == 0 || j.files[0].next() == j.files[0].first {
		return 0, nil
	}
	return j.files[0].first, nil
}

// LastIndex implements raft.LogStore.
func (j *journal) LastIndex() (uint64, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.last(), nil
}

func (j *journal) last() uint64 {
	for i := len(j.files) - 1; i >= 0; i-- {
		if f := j.files[i]; len(f.offsets) > 0 {
			return f.next() - 1
		}
	}
	return 0
}

// GetLog implements raft.LogStore. It checks the record again.
func (j *journal) GetLog(index uint64, out *raft.Log) error {
	j.mu.RLock()
	defer j.mu.RUnlock()
	i := sort.Search(len(j.files), func(i int) bool { return j.files[i].next() > index })
	if i == len(j.files) || index < j.files[i].first {
		return raft.ErrLogNotFound
	}
	f := j.files[i]
	n := index - f.first
	end := f.size
	if n+1 < uint64(len(f.offsets)) {
		end = f.offsets[n+1]
	}
	data := make([]byte, end-f.offsets[n])
	if _, err := f.f.ReadAt(data, f.offsets[n]); err != nil {
		return fmt.Errorf("read log entry %d: %w", index, err)
	}
	if _, ok := record(data, index); !ok {
		return fmt.Errorf("read log entry %d: %w", index, errJournalDamaged)
	}
	return decodeLog(data[recordHeader:], out)
}

// StoreLog implements raft.LogStore.
func (j *journal) StoreLog(l *raft.Log) error { return j.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore: one write, one fsync.
func (j *journal) StoreLogs(logs []*raft.Log) error {
	j.since.Store(int64(max(1, time.Since(j.opened)))) // package raft appends one batch after the other
	defer j.since.Store(0)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.mend(); err != nil {
		return err
	}
	if len(logs) == 0 {
		return nil
	}
	if last := j.last(); last != 0 && logs[0].Index != last+1 {
		return fmt.Errorf("append log entry %d after %d: the log has no gaps", logs[0].Index, last)
	}
	f, err := j.tail(logs[0].Index)
	if err != nil {
		return err
	}
	offsets, size := f.offsets, f.size
	j.buf = j.buf[:0]
	for _, l := range logs {
		offsets = append(offsets, size+int64(len(j.buf)))
		begin := len(j.buf)
		j.buf = append(j.buf, make([]byte, recordHeader)...)
		j.buf = encodeLog(j.buf, l, l.Index-logs[0].Index)
		payload := j.buf[begin+recordHeader:]
		if len(payload) > recordMax {
			return fmt.Errorf("append log entry %d: %d bytes, the limit is %d", l.Index, len(payload), recordMax)
		}
		binary.LittleEndian.PutUint32(j.buf[begin:], recordMagic)
		binary.LittleEndian.PutUint32(j.buf[begin+4:], uint32(len(payload)))
		binary.LittleEndian.PutUint32(j.buf[begin+8:], crc32.Checksum(payload, castagnoli))
	}
	if _, err = j.writeAt(f.f, j.buf, size); err == nil {
		err = fdatasync(f.f)
	}
	if err != nil {
		j.torn = fmt.Errorf("append to the log: %w", err)
		return j.torn
	}
	f.offsets, f.size = offsets, size+int64(len(j.buf))
	return nil
}

// mend cuts off what a failed append has left. What was acknowledged before it was synced before it.
func (j *journal) mend() error {
	if j.broken != nil || j.torn == nil {
		return j.broken
	}
	if n := len(j.files); n > 0 {
		f := j.files[n-1]
		if err := errors.Join(f.f.Truncate(f.size), f.f.Sync()); err != nil {
			return fmt.Errorf("%w; and what it has left cannot be cut off (free space on the disk, or mend it): %w", j.torn, err)
		}
	}
	j.torn = nil
	return nil
}

// hangs reports whether an append has been under way for longer than limit.
func (j *journal) hangs(limit time.Duration) bool {
	since := j.since.Load()
	return since != 0 && time.Since(j.opened)-time.Duration(since) > limit
}

// tail returns the file to append index to, starting a new one when the last is full.
func (j *journal) tail(index uint64) (*journalFile, error) {
	if n := len(j.files); n > 0 {
		f := j.files[n-1]
		if f.size < j.rollAt && f.next() == index {
			return f, nil
		}
		if len(f.offsets) == 0 {
			if err := j.drop(n - 1); err != nil {
				return nil, err
			}
		}
	}
	name := filepath.Join(j.dir, fmt.Sprintf("log-%016x.rdb", index))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start a log file: %w", err)
	}
	header := binary.LittleEndian.AppendUint64([]byte(journalMagic), index)
	_, err = j.writeAt(f, header, 0)
	if err = errors.Join(err, f.Sync(), j.syncDir(j.dir)); err != nil {
		if left := errors.Join(f.Close(), os.Remove(name)); left != nil { // it could be in the way of what comes later
			j.broken = fmt.Errorf("a log file that could not be started cannot be removed (restart this process after repairing the disk): %w", left)
		}
		return nil, errors.Join(fmt.Errorf("start a log file: %w", err), j.broken)
	}
	jf := &journalFile{f: f, first: index, size: journalHeader}
	j.files = append(j.files, jf)
	return jf, nil
}

// drop deletes file i.
func (j *journal) drop(i int) error {
	f := j.files[i]
	j.files = append(j.files[:i:i], j.files[i+1:]...)
	if err := errors.Join(f.f.Close(), os.Remove(f.f.Name()), j.syncDir(j.dir)); err != nil {
		j.broken = fmt.Errorf("delete a log file (restart this process after repairing the disk): %w", err)
	}
	return j.broken
}

// DeleteRange implements raft.LogStore, for a range at either end. At the front only whole files go, so some entries
// that Raft no longer needs stay; at the back it is exact. Each step leaves a log without gaps, whenever it is cut off.
func (j *journal) DeleteRange(low, high uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.mend(); err != nil {
		return err
	}
	return j.deleteRange(low, high)
}

func (j *journal) deleteRange(low, high uint64) error {
	if high < j.last() {
		for len(j.files) > 1 && j.files[0].next() <= high+1 {
			if err := j.drop(0); err != nil {
				return err
			}
		}
		return nil
	}
	for n := len(j.files); n > 0 && j.files[n-1].first >= low; n = len(j.files) {
		if err := j.drop(n - 1); err != nil {
			return err
		}
	}
	if len(j.files) == 0 {
		return nil
	}
	f := j.files[len(j.files)-1]
	if f.next() <= low {
		return nil
	}
	f.size = f.offsets[low-f.first]
	f.offsets = f.offsets[:low-f.first]
	if err := errors.Join(f.f.Truncate(f.size), f.f.Sync()); err != nil {
		j.torn = fmt.Errorf("cut the log at %d: %w", low, err)
	}
	return j.torn
}

// Close closes the files.
func (j *journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, f := range j.files {
		errs = append(errs, f.f.Close())
	}
	j.files, j.broken = nil, os.ErrClosed
	return errors.Join(errs...)
}
