// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/front"
	"redoubt/internal/topo"
)

// ringBook is this member's copy of the agreed ring, and sees that its front acts by no other one. A lease of a shard says that the ring was read, too
// (ringed): so who has not read the ring for as long as a lease sends nothing, and who reads that it has changed stops before it has a lease again.
// Safe for concurrent use.
type ringBook struct {
	m   *member
	me  string // this process: a member that is started anew is another one
	now atomic.Pointer[front.Ring]

	mu      sync.Mutex // guards what follows
	doc     ringDoc
	rev     coord.Rev // 0: there is no document
	known   bool
	gen     uint64 // of now
	begun   bool   // the front serves
	stopped bool   // nothing is given to shards
	since   time.Time
	asked   uint64 // the stamp for which this member was asked to be still, and is; 0: none
	trouble string // why a change does not go on, by who carries it out; here
	changed chan struct{}
}

const (
	ringLook     = 2 * time.Millisecond // while commands are waited for
	ringHoldMost = time.Second          // after that a member that is still takes the word back
	ringBusyMost = 2 * time.Second      // after that clients whose command goes on are disconnected
	ringStill    = 40 * time.Millisecond
	ringAnswer   = 150 * time.Millisecond
)

func newRingBook(m *member) *ringBook {
	return &ringBook{
		m: m, me: m.o.Config.Member.ID + "/" + newMoverSecret()[:16], changed: make(chan struct{}),
		doc: ringDoc{Format: ringFormat, Shards: m.ringOfFile()},
	}
}

func (b *ringBook) key() string { return topo.KeyRing + b.m.deploy.Name }

// get returns what is known of the document.
func (b *ringBook) get() (d ringDoc, rev coord.Rev, known bool, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.doc, b.rev, b.known, b.changed
}

// read reads the document. When it returns, this member acts by nothing older.
func (b *ringBook) read(ctx context.Context) error {
	doc, err := b.m.shared.Get(ctx, b.key())
	switch {
	case errors.Is(err, coord.ErrNotFound):
		return b.offer(nil)
	case err != nil:
		return err
	}
	return b.offer(&doc)
}

// offer takes a version of the document; nil: there is none. If it says that this member may not go on as it does, it does not when this returns.
func (b *ringBook) offer(doc *coord.Doc) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known && (doc == nil || doc.Rev <= b.rev) {
		return nil
	}
	if doc != nil {
		d, err := decodeRing(doc.Value)
		if err != nil {
			return err
		}
		b.doc, b.rev = d, doc.Rev
	}
	b.known = true
	if b.asked != b.doc.Stamp {
		b.asked = 0
	}
	if b.begun && (b.gen != b.doc.Gen || b.doc.shuts(b.me)) {
		b.stop()
	}
	close(b.changed)
	b.changed = make(chan struct{})
	return nil
}

// stop gives nothing to shards any more, and sends nothing of what they were given. The caller holds b.mu.
func (b *ringBook) stop() {
	if !b.stopped {
		b.stopped, b.since = true, time.Now()
		b.m.front.Still()
	}
	for _, u := range b.m.all() {
		if u.proxy != nil {
			u.proxy.Shut()
		}
	}
}

// quiet reports whether all that was given to shards is answered. shut: also what blocks.
func (b *ringBook) quiet(shut bool) bool {
	if b.m.front.Busy(shut) > 0 {
		return false
	}
	for _, u := range b.m.all() {
		if shut && u.proxy != nil && !u.proxy.Quiet() {
			return false
		}
	}
	return true
}

// await waits until the ring is known and its shards are open, and has this member act by it.
func (b *ringBook) await(ctx context.Context) error {
	for {
		_, _, _, changed := b.get()
		b.mu.Lock()
		begun := b.known && !b.doc.shuts(b.me)
		if begun {
			b.begun = b.adopt()
			begun = b.begun
		}
		b.mu.Unlock()
		if begun {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(reshardEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// adopt makes the agreed ring the one that is acted by; false: that cannot be yet. The caller holds b.mu.
func (b *ringBook) adopt() bool {
	r, open, err := b.m.frontRing(b.doc.Gen, b.doc.Shards)
	if err != nil {
		b.m.log.Error("the agreed ring cannot be used", "err", err)
	}
	if err != nil || !open {
		return false
	}
	b.now.Store(r)
	b.gen = b.doc.Gen
	return true
}

// keep keeps the copy current, and goes on when that is allowed, until ctx ends.
func (b *ringBook) keep(ctx context.Context) error {
	pushed := b.m.shared.Watch(ctx, b.key())
	tick := time.NewTicker(slotsEvery)
	defer tick.Stop()
	if err := b.read(ctx); err != nil && ctx.Err() == nil {
		b.m.log.Debug("read the ring", "err", err)
	}
	for {
		var look <-chan time.Time
		if b.turn(ctx) {
			look = time.After(ringLook)
		}
		_, _, _, changed := b.get()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look:
		case <-changed:
		case <-tick.C: // in case nothing is pushed
			if err := b.read(ctx); err != nil && ctx.Err() == nil {
				b.m.log.Debug("read the ring", "err", err)
			}
		case doc, ok := <-pushed:
			if !ok {
				pushed = nil
			} else if err := b.offer(&doc); err != nil {
				return err
			}
		}
	}
}

// turn lets this member go on if it is stopped and may, and reports whether to look again soon.
func (b *ringBook) turn(ctx context.Context) (soon bool) {
	b.mu.Lock()
	stopped, asked, since, shut := b.stopped, b.asked, b.since, b.doc.shuts(b.me)
	other := b.gen != b.doc.Gen // by the same ring what was given to shards may go on
	b.mu.Unlock()
	switch {
	case !stopped:
		return false
	case asked != 0:
		if time.Since(since) > ringHoldMost {
			b.takeBack(ctx, asked)
		}
		return true
	case other && !b.quiet(true):
		if time.Since(since) > ringBusyMost {
			b.m.front.EndBusy()
		}
		return true
	case shut:
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.gen
	if !other && b.gen != b.doc.Gen { // it has changed since
		return true
	}
	if !b.stopped || b.asked != 0 || b.doc.shuts(b.me) || b.gen != b.doc.Gen && !b.adopt() {
		return true
	}
	for _, u := range b.m.all() {
		if u.proxy != nil {
			u.proxy.Reopen()
		}
	}
	if b.gen != was {
		b.m.front.EndListeners()
		b.m.log.Info("the ring has changed", "generation", b.gen, "shards", len(b.doc.Shards), "stop", time.Since(b.since))
	}
	b.stopped = false
	b.m.front.Resume()
	return false
}

// takeBack ends a hand-over whose driver is silent: by that the driver's word, should it still come, does not count.
func (b *ringBook) takeBack(ctx context.Context, stamp uint64) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := b.change(ctx, func(d *ringDoc) bool {
		if d.Stamp != stamp || d.Change == nil || d.Change.Stage != ringClosing {
			return false
		}
		d.Change.Stage, d.Change.Crew = ringCopying, nil
		d.Stamp++
		return true
	})
	if err != nil {
		b.m.log.Debug("take a hand-over of the ring back", "err", err)
	}
}

// change changes the document by what edit does to a copy of it; false from it changes nothing.
func (b *ringBook) change(ctx context.Context, edit func(*ringDoc) bool) (ringDoc, error) {
	var now, next ringDoc
	doc, err := b.m.rewrite(ctx, b.key(), func() ([]byte, coord.Rev, error) {
		if err := b.read(ctx); err != nil {
			return nil, 0, err
		}
		var rev coord.Rev
		now, rev, _, _ = b.get()
		next = now.clone()
		if !edit(&next) {
			return nil, 0, nil
		}
		value, err := json.Marshal(next)
		return value, rev, err
	})
	if err != nil || doc.Value == nil {
		return now, err
	}
	return next, b.offer(&doc)
}

// stamp numbers what this member knows.
func (b *ringBook) stamp() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.doc.Stamp
}

// secret is the password of who moves keys; empty: nobody does.
func (b *ringBook) secret() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.doc.Change; c != nil {
		return c.Secret
	}
	return ""
}

func (b *ringBook) setTrouble(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trouble = text
}

// ringStamp numbers what is known of the ring; 0: there is none that changes.
func (u *unit) ringStamp() uint64 {
	if u.ring == nil {
		return 0
	}
	return u.ring.stamp()
}

// ringMover tells the password of who moves keys of a ring; nil: nobody ever does.
func (u *unit) ringMover() func() string {
	if u.ring == nil {
		return nil
	}
	return u.ring.secret
}

// ringed reads the ring with each document of a shard, so that a lease that counts from the start of the read is one to act by that ring.
type ringed struct {
	supplier
	book *ringBook
}

// supplied is what the shard's view and proxy read, by the store as s.
func (u *unit) supplied(s supplier) supplier {
	if u.ring != nil {
		return ringed{s, u.ring}
	}
	return s
}

// Get implements coord.Docs.
func (r ringed) Get(ctx context.Context, key string) (coord.Doc, error) {
	read := make(chan error, 1)
	go func() { read <- r.book.read(ctx) }()
	doc, err := r.supplier.Get(ctx, key)
	if failed := <-read; err == nil && failed != nil {
		err = failed
	}
	return doc, err
}
