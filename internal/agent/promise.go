// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"redoubt/internal/topo"
)

// promise is the highest epoch that this node has promised to: on disk before anybody hears of it (SAFETY A6). It stands
// in the way of every failover, so keeping one costs a single write and fdatasync: the file has two slots of fixed size
// that are written in turn, each with a checksum. A torn write can only hit the slot of a promise that nobody has heard
// of yet. A file without a sound slot is an error, because forgetting a promise loses writes.
type promise struct {
	file  *os.File
	epoch topo.Epoch
	next  int64 // slot that is written next
}

const slotSize = 512 // a disk writes at least this much at once

func openPromise(dir string) (*promise, error) {
	path := filepath.Join(dir, "promise")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the promise: %w", err)
	}
	p := &promise{file: f}
	if err := p.load(path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

func (p *promise) load(path string) error {
	b := make([]byte, 2*slotSize)
	n, _ := p.file.ReadAt(b, 0)
	if n == 0 {
		if err := p.write(0, 0); err != nil { // allocates both slots; a promise never has to grow the file
			return err
		}
		if err := p.write(1, 0); err != nil {
			return err
		}
		return syncDir(filepath.Dir(path))
	}
	sound := 0
	for slot := range int64(2) {
		if e, ok := parseSlot(b[slot*slotSize : (slot+1)*slotSize]); ok {
			sound++
			if e >= p.epoch {
				p.epoch, p.next = e, 1-slot
			}
		}
	}
	if sound == 0 {
		return fmt.Errorf("%s is damaged: this node may have promised an epoch that it has forgotten; remove the node from the deployment and add it again as a new one", path)
	}
	return nil
}

func slotText(e topo.Epoch) string {
	text := fmt.Sprintf("redoubt promise %d", e)
	return fmt.Sprintf("%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

func parseSlot(b []byte) (topo.Epoch, bool) {
	line, _, _ := strings.Cut(string(b), "\n")
	var e topo.Epoch
	if _, err := fmt.Sscanf(line, "redoubt promise %d ", &e); err != nil {
		return 0, false
	}
	return e, line+"\n" == slotText(e)
}

// write puts an epoch into a slot and returns when it is on disk.
func (p *promise) write(slot int64, e topo.Epoch) error {
	b := make([]byte, slotSize)
	copy(b, slotText(e))
	if _, err := p.file.WriteAt(b, slot*slotSize); err != nil {
		return err
	}
	return unix.Fdatasync(int(p.file.Fd()))
}

// keep writes the promise and returns when it is on disk.
func (p *promise) keep(e topo.Epoch) error {
	if e <= p.epoch {
		return nil
	}
	if err := p.write(p.next, e); err != nil {
		return fmt.Errorf("keep the promise of epoch %d: %w", e, err)
	}
	p.epoch, p.next = e, 1-p.next
	return nil
}

func (p *promise) close() error { return p.file.Close() }

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
