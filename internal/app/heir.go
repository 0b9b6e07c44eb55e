// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/config"
	"redoubt/internal/front"
	"redoubt/internal/proxy"
)

// Taking a member over from an earlier process (ADR 0016): the new process's part.

// The bounds of taking over.
const (
	goTime    = 30 * time.Second // for the earlier process to let go
	freshTime = 10 * time.Second // for the first confirmed read of the agreed state
	asksMax   = 16               // reads for the earlier process at once
)

// Predecessor is the process whose member this one is to take over. Its methods are for Run, except Inherit and Refuse.
type Predecessor struct {
	*hatch
	offer offer
	first uint64 // id of clients
	left  inheritance
	up    atomic.Bool // this process is the member
}

// Inherit returns the process that started this one to take its member over; nil when this is an ordinary start.
func Inherit() (*Predecessor, error) {
	text, ok := os.LookupEnv(HatchEnv)
	if !ok {
		return nil, nil
	}
	if err := os.Unsetenv(HatchEnv); err != nil { // servers and guards must not see it
		return nil, fmt.Errorf("take over a member: %w", err)
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s=%q: it is set by a process that hands its member over, and by nobody else", HatchEnv, text)
	}
	h, err := hatchOf(os.NewFile(uintptr(fd), "hatch"))
	if err != nil {
		return nil, err
	}
	p := &Predecessor{hatch: h}
	if err := h.c.SetReadDeadline(time.Now().Add(heirReady)); err != nil {
		return nil, fmt.Errorf("take over a member: %w", err)
	}
	f, err := h.receive()
	if err == nil {
		defer f.close()
		err = f.decode(&p.offer)
	}
	if err != nil {
		h.close()
		return nil, fmt.Errorf("take over a member: %w", err)
	}
	return p, nil
}

// Refuse tells the earlier process why it has to go on.
func (p *Predecessor) Refuse(why error) {
	_ = p.send(whatRefuse, ready{Why: why.Error()})
	p.close()
}

// check returns what speaks against taking over with this configuration.
func (p *Predecessor) check(c config.Config) error {
	o := p.offer
	switch {
	case o.Format != formatFor(c) || o.Record != proxy.RecordFormat || o.Front != frontRecords(c):
		return fmt.Errorf("it hands over in format %d with records of format %d and %d, this program knows %d, %d and %d for this mode: stop the member and start it again", o.Format, o.Record, o.Front, formatFor(c), proxy.RecordFormat, frontRecords(c))
	case o.Member != c.Member.ID || o.Dir != c.Member.Dir:
		return fmt.Errorf("it is member %s in %s, but the configuration is that of %s in %s: stop the member and start it again", o.Member, o.Dir, c.Member.ID, c.Member.Dir)
	}
	return nil
}

// take waits until the earlier process has let go, and returns the lock of the member's directory.
func (p *Predecessor) take(o Options) (*claimed, error) {
	if err := p.check(o.Config); err != nil {
		p.Refuse(err)
		return nil, fmt.Errorf("take over from process %d: %w", p.offer.PID, err)
	}
	if err := p.send(whatReady, ready{Version: o.Version}); err != nil {
		return nil, err
	}
	_ = p.c.SetReadDeadline(time.Now().Add(goTime))
	f, err := p.receive()
	if err != nil {
		return nil, fmt.Errorf("process %d goes on itself: %w", p.offer.PID, err)
	}
	_ = p.c.SetReadDeadline(time.Time{})
	var t takeover
	if err := f.decode(&t); err != nil || f.what != whatGo || len(f.files) != len(t.Ports)+1 {
		f.close()
		return nil, errors.Join(fmt.Errorf("process %d handed over %d files (%c)", p.offer.PID, len(f.files), f.what), err)
	}
	p.first, p.left.ports = t.FirstID, t.Ports
	for i, fd := range f.files[1:] {
		p.left.files = append(p.left.files, os.NewFile(uintptr(fd), t.Ports[i]))
	}
	return claimWith(os.NewFile(uintptr(f.files[0]), "the member's lock"), o.File)
}

// awaitFresh waits for a confirmed read of the agreed state: an agent that knows of none would fence a primary.
func (u *unit) awaitFresh(ctx context.Context) error {
	t := time.NewTimer(freshTime)
	defer t.Stop()
	for {
		next := u.view.Next()
		if u.view.Load().Fresh(u.clock.Uptime()) {
			return nil
		}
		select {
		case <-next:
		case <-t.C:
			return errors.New("take over: the agreed state could not be confirmed")
		case err := <-u.parts.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitAgreed waits until what is agreed is known for certain, of all shards.
func (m *member) awaitAgreed(ctx context.Context) error {
	for _, u := range m.units {
		if err := u.awaitFresh(ctx); err != nil {
			return err
		}
	}
	if m.slots == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, freshTime)
	defer cancel()
	if err := m.slots.await(ctx); err != nil {
		return fmt.Errorf("take over: the agreed slots of the shards could not be read: %w", err)
	}
	_, err := m.readJob(ctx)
	return err
}

// startSuccession tells the earlier process that this one is the member, once clients are served.
func (m *member) startSuccession(ctx context.Context) error {
	p := m.o.Predecessor
	if m.front != nil {
		t := time.NewTimer(freshTime)
		defer t.Stop()
		select {
		case <-m.front.Running():
		case err := <-m.parts.failed:
			return err
		case <-t.C:
			return errors.New("take over: it is not known where keys are")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := p.send(whatUp, struct{}{}); err != nil {
		return fmt.Errorf("take over from process %d: %w", p.offer.PID, err)
	}
	p.up.Store(true)
	m.parts.start("succession", m.succeed)
	return nil
}

// succeed serves the earlier process until it has nothing left to hand over: reads of the store, clients.
func (m *member) succeed(ctx context.Context) error {
	p := m.o.Predecessor
	defer m.succeeds.Store(false)
	defer p.close()
	stop := context.AfterFunc(ctx, p.close)
	defer stop()
	var asks sync.WaitGroup
	defer asks.Wait()
	room := make(chan struct{}, asksMax)
	clients := 0
	for {
		f, err := p.receive()
		if err != nil {
			m.log.Info("the earlier process is gone", "pid", p.offer.PID, "clients", clients)
			if ctx.Err() == nil && !errors.Is(err, io.EOF) {
				m.log.Warn("the hand-over ended early", "err", err)
			}
			return nil
		}
		switch f.what {
		case whatAsk:
			var q question
			if f.decode(&q) == nil {
				room <- struct{}{}
				asks.Go(func() {
					_ = p.send(whatAnswer, m.answerFor(ctx, q)) // an answer that is not taken is asked for again
					<-room
				})
			}
		case whatScript, whatLore:
			m.learn(f)
		case whatClient, whatFront:
			if err := m.adopt(f); err != nil {
				m.log.Error("a client could not be taken over", "err", err)
				continue
			}
			clients++
		case whatDone:
			m.log.Info("took over the clients", "from", p.offer.PID, "clients", clients)
		}
		if f.what != whatClient && f.what != whatFront {
			f.close()
		}
	}
}

// learn remembers what clients have loaded.
func (m *member) learn(f frame) {
	if f.what == whatScript {
		var body []byte
		if p := m.units[0].proxy; f.decode(&body) == nil && p != nil {
			p.Learn(body)
		}
		return
	}
	var l lore
	if f.decode(&l) != nil {
		return
	}
	if l.Shard == "" && m.front != nil {
		m.front.Learn(l.Body, l.Functions)
	} else if u := m.unitOf(l.Shard); u != nil && u.proxy != nil {
		u.proxy.Learn(l.Body)
	}
}

// adopt goes on with a client.
func (m *member) adopt(f frame) error {
	if f.what == whatFront {
		return m.adoptAtFront(f)
	}
	p := m.units[0].proxy
	r, err := proxy.DecodeRecord(f.body)
	if err == nil && (p == nil || len(f.files) == 0) {
		err = fmt.Errorf("client %d came with %d sockets, and there may be no proxy here", r.ID, len(f.files))
	}
	if err != nil {
		f.close()
		return err
	}
	g := proxy.Given{Record: r, Client: f.files[0], Upstream: -1}
	if len(f.files) > 1 {
		g.Upstream = f.files[1]
	}
	return p.Adopt(g)
}

// adoptAtFront goes on with a client of the front. Its descriptors come in the order of its record.
func (m *member) adoptAtFront(f frame) error {
	r, err := front.DecodeRecord(f.body)
	if err == nil && (m.front == nil || len(f.files) == 0) {
		err = fmt.Errorf("client %d came with %d sockets, and there may be no front here", r.ID, len(f.files))
	}
	if err != nil {
		f.close()
		return err
	}
	g, next := front.Given{Record: r, Client: f.files[0]}, 1
	for _, s := range r.Shards {
		fd := -1
		if s.File && next < len(f.files) {
			fd = f.files[next]
			next++
		}
		g.Shards = append(g.Shards, fd)
	}
	for _, fd := range f.files[next:] {
		_ = unix.Close(fd)
	}
	return m.front.Adopt(g)
}
