// SPDX-License-Identifier: Apache-2.0

package front

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// Handing clients over to the front of another process (ADR 0050): a client leaves when nothing of it is under way, with what its connections to shards
// hold. Until then it is not read from: what it sends waits in its socket.

// Given is a client on its way to another process. Whoever gets it closes the descriptors.
type Given struct {
	Record *Record
	Client int   // descriptor
	Shards []int // those of connections to shards, as the record counts them
}

// Farewell is how Leave gives clients away.
type Farewell struct {
	Give   func(Given) error // one at a time; after an error Leave ends
	Free   func()            // called again and again: has the shards end commands that block, see Stream.Depart; nil: they cannot
	Linger func()            // called once, when clients are still here after a second; nil: nobody is told
}

// ErrTooLarge is what Farewell.Give returns for a client that the other process cannot take: it stays, and the others leave.
var ErrTooLarge = errors.New("what is known about a client is too large to be handed over")

// leaving is a hand-over that is under way.
type leaving struct {
	given chan Given
	begun atomic.Int64 // clients that were let go of
	ended atomic.Int64 // of these, those that have left or were taken back
}

const (
	askedMore    = 64      // clients that are asked to leave in each look
	givenAhead   = 256     // clients that wait to be sent
	inputMax     = 2 << 20 // more unhandled input of one client is carried out here first
	leaveEvery   = time.Millisecond
	leaveLater   = 10 * time.Millisecond
	leaveHurry   = 500 // looks before the pace slackens
	freeEvery    = 5   // looks
	lingerNotice = time.Second
)

// Leave takes no more clients and gives every client away as soon as nothing of it is under way. It returns when no client is left or ctx ends, with the
// number of clients that are still here. After an error, and after Leave, Stay takes clients again.
func (f *Front) Leave(ctx context.Context, w Farewell) (left int, err error) {
	m := &leaving{given: make(chan Given, givenAhead)}
	sent := make(chan error, 1)
	go func() { sent <- f.sendAll(m, w.Give) }()
	f.shutDoor()
	f.mover.Store(m)
	left = f.awaitLeft(ctx, m, w)
	f.moving.Lock() // nobody begins to leave behind this
	f.mover.CompareAndSwap(m, nil)
	f.moving.Unlock()
	for m.begun.Load() != m.ended.Load() {
		<-time.After(leaveEvery)
	}
	close(m.given)
	return left, <-sent
}

// sendAll sends what is given away. What could not be sent is taken back.
func (f *Front) sendAll(m *leaving, give func(Given) error) error {
	var failed error
	for g := range m.given {
		if failed == nil {
			failed = give(g)
		}
		switch {
		case failed == nil:
			g.close()
		case errors.Is(failed, ErrTooLarge):
			failed = nil
			f.log.Info("a client stays until its process ends", "client", g.Record.ID, "err", ErrTooLarge)
			f.takeAgain(g, true)
		default:
			f.mover.CompareAndSwap(m, nil)
			f.takeAgain(g, false)
		}
		m.ended.Add(1)
	}
	return failed
}

func (g Given) close() {
	for _, fd := range append([]int{g.Client}, g.Shards...) {
		if fd >= 0 {
			_ = syscall.Close(fd)
		}
	}
}

// takeAgain goes on with a client that was about to leave. stays: it is not asked again.
func (f *Front) takeAgain(g Given, stays bool) {
	if err := f.adopt(g, stays); err != nil {
		f.log.Warn("a client could neither be handed over nor kept", "client", g.Record.ID, "err", err)
	}
}

// awaitLeft asks again and again until all clients have left.
func (f *Front) awaitLeft(ctx context.Context, m *leaving, w Farewell) (left int) {
	began, told := time.Now(), w.Linger == nil
	asked := map[*client]struct{}{}
	for n := 0; ; n++ {
		ended := m.ended.Load()
		begun := m.begun.Load()
		here := f.all()
		if len(here) == 0 && begun == ended && begun == m.begun.Load() || f.mover.Load() == nil {
			return len(here)
		}
		urge(asked, here)
		if n%freeEvery == 0 && w.Free != nil {
			w.Free()
		}
		if !told && time.Since(began) > lingerNotice {
			told = true
			w.Linger()
		}
		every := leaveEvery
		if n > leaveHurry {
			every = leaveLater
		}
		t := time.NewTimer(every)
		select {
		case <-ctx.Done():
		case <-f.ctx.Done():
		case <-t.C:
			continue
		}
		t.Stop()
		return len(f.all())
	}
}

// urge has those look whether they can leave who were asked before, and a few more: a client that was asked waits, so that not all are asked before the
// first ones have left.
func urge(asked map[*client]struct{}, here []*client) {
	more := 0
	for _, c := range here {
		if _, before := asked[c]; !before {
			if more == askedMore {
				continue
			}
			more++
			asked[c] = struct{}{}
		}
		c.look()
	}
}

// look has who drives the client look at what has changed.
func (c *client) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.away {
		return
	}
	if c.cond.Broadcast(); !c.driven {
		c.sock.Again()
	}
}

// Stay undoes Leave: clients are let in again, and who is still here is served.
func (f *Front) Stay() {
	f.mover.Store(nil)
	f.openDoor()
	for _, c := range f.all() {
		c.look()
	}
}

// File returns a copy of the listening socket, which goes on listening when this front ends. The caller closes it.
func (f *Front) File() (*os.File, error) {
	l, ok := f.o.Listener.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("hand over the port: %T has no descriptor", f.o.Listener)
	}
	return l.File()
}

// deadlined is a listener whose Accept can be ended without closing it.
type deadlined interface{ SetDeadline(time.Time) error }

// shutDoor lets nobody in any more. The port stays open: those that come wait in it.
func (f *Front) shutDoor() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, ok := f.o.Listener.(deadlined); ok && f.shut == nil {
		f.shut = make(chan struct{})
		_ = l.SetDeadline(time.Unix(1, 0))
	}
}

func (f *Front) openDoor() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, ok := f.o.Listener.(deadlined); ok && f.shut != nil {
		_ = l.SetDeadline(time.Time{})
		close(f.shut)
		f.shut = nil
	}
}

// awaitDoor waits while nobody is to be let in, if that is why Accept has failed.
func (f *Front) awaitDoor(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	f.mu.Lock()
	shut := f.shut
	f.mu.Unlock()
	if shut != nil {
		select {
		case <-shut:
		case <-f.ctx.Done():
		}
	}
	return f.ctx.Err() == nil
}

// Lore returns the bodies of the scripts and of the functions that clients have loaded.
func (f *Front) Lore() (scripts, functions [][]byte) {
	o := &f.lore
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.oldest {
		scripts = append(scripts, s.body)
	}
	return scripts, slices.Clone(o.functions)
}

// Learn remembers a script that another process knew, or functions.
func (f *Front) Learn(body []byte, functions bool) {
	if functions {
		f.lore.function(body)
	} else {
		f.lore.script(body, -1)
	}
}
