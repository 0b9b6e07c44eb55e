// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/clock"
	"redoubt/internal/converge"
	"redoubt/internal/topo"
)

// pledges keep this node's word to a primary that goes on without the store (converge.Pledge). Before the first pledge of a
// tenure is given, its epoch and duration are on disk; the later ones of that tenure need no write, because whoever finds
// the record at its start keeps a whole pledge from then on. That outlasts every pledge that was given before, whatever became of
// the machine's clock. A torn record is one that nobody has heard of, or one that was being cleared.
type pledges struct {
	clock clock.Clock
	given atomic.Pointer[converge.Pledge] // never nil

	mu   sync.Mutex // one word at a time: no promise to an election between the judgement of a plea and the pledge
	file *os.File
	kept topo.Epoch // on disk; zero: nothing is
}

func openPledges(dir string, c clock.Clock) (*pledges, error) {
	f, err := os.OpenFile(filepath.Join(dir, "pledge"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the pledge: %w", err)
	}
	p := &pledges{clock: c, file: f}
	b := make([]byte, slotSize)
	n, _ := f.ReadAt(b, 0)
	epoch, d := parsePledge(b)
	p.kept = epoch
	p.given.Store(&converge.Pledge{})
	if epoch > 0 {
		p.given.Store(&converge.Pledge{Epoch: epoch, Until: c.Uptime() + d})
	}
	if n == 0 { // so that a pledge never has to grow the file
		err = errors.Join(p.write(0, 0), syncDir(dir))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the pledge: %w", err), f.Close())
	}
	return p, nil
}

func pledgeText(e topo.Epoch, d time.Duration) string {
	text := fmt.Sprintf("redoubt pledge %d %d", e, d.Nanoseconds())
	return fmt.Sprintf("%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

func parsePledge(b []byte) (topo.Epoch, time.Duration) {
	line, _, _ := strings.Cut(string(b), "\n")
	var e topo.Epoch
	var ns int64
	if _, err := fmt.Sscanf(line, "redoubt pledge %d %d ", &e, &ns); err != nil || line+"\n" != pledgeText(e, time.Duration(ns)) {
		return 0, 0
	}
	return e, time.Duration(ns)
}

// write replaces the record and returns when it is on disk. Callers hold mu, but for the first.
func (p *pledges) write(e topo.Epoch, d time.Duration) error {
	b := make([]byte, slotSize)
	copy(b, pledgeText(e, d))
	if _, err := p.file.WriteAt(b, 0); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(p.file.Fd())); err != nil {
		return err
	}
	p.kept = e
	return nil
}

// give pledges for d from now on. Callers hold mu.
func (p *pledges) give(e topo.Epoch, d time.Duration) error {
	if p.kept != e {
		if err := p.write(e, d); err != nil {
			return fmt.Errorf("keep the pledge to epoch %d: %w", e, err)
		}
	}
	p.given.Store(&converge.Pledge{Epoch: e, Until: p.clock.Uptime() + d})
	return nil
}

// settle clears a record that binds to nothing any more, so that the next start need not keep it.
func (p *pledges) settle() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kept == 0 || p.clock.Uptime() < p.given.Load().Until {
		return nil
	}
	return p.write(0, 0)
}

func (p *pledges) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file.Close()
}

// Pledge answers the plea of a primary that cannot reach the store; why says why it is refused. Safe for concurrent use.
func (a *Agent) Pledge(plea topo.Plea) (ok bool, why string) {
	a.pledges.mu.Lock()
	defer a.pledges.mu.Unlock()
	var shard *topo.Shard
	var age time.Duration
	if s := a.o.View.Load(); s != nil {
		shard, age = &s.Shard, a.o.Clock.Uptime()-s.ReadStart
	}
	if ok, why = converge.MayPledge(plea, a.o.ID, shard, age, a.promise.epoch); !ok {
		return false, why
	}
	if err := a.pledges.give(plea.Epoch, shard.Spec.Timing.PledgeFor()); err != nil {
		return false, err.Error()
	}
	return true, ""
}

// Settle forgets pledges that are over. Safe for concurrent use.
func (a *Agent) Settle() error { return a.pledges.settle() }

// Writable reports whether this node's server was a primary when it was last looked at, and has not ended. Safe for concurrent
// use.
func (a *Agent) Writable() bool { return a.writable.Load() }

// keepPromise promises the epoch of the order that is obeyed, unless a pledge was given since that was decided.
func (a *Agent) keepPromise(in converge.Input, e topo.Epoch) error {
	a.pledges.mu.Lock()
	defer a.pledges.mu.Unlock()
	if p := a.pledges.given.Load(); p.Binds(in.Shard.Assigned.Phase, e, a.promise.epoch, a.o.Clock.Uptime()) {
		return fmt.Errorf("epoch %d is not promised: a pledge to the primary of epoch %d was given meanwhile", e, p.Epoch)
	}
	return a.promise.keep(e)
}
