// SPDX-License-Identifier: Apache-2.0

// Package address keeps one floating address on one healthy member, in place of keepalived: members report, the controller of the
// store decides, the member that is named holds the address while its reads of the document are good.
//
// It is not for data and knows nothing of primaries: every proxy serves all. Its invariant: nobody is named as the holder before the
// one before has said that it let go, or its lease and the margin are over; and the address itself is in the hands of a process
// that lets go of it when the lease ends or the member dies. Goroutines, all inside Run: one that reads the document, one that decides
// where this member is the controller, one that reports, and one that listens to the holding process.
package address

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/event"
)

// The names of what is kept in the store.
const (
	keyAddress  = "address/"
	beatAddress = "address/"
)

// The times of the face.
const (
	readEvery   = 100 * time.Millisecond
	reportEvery = 100 * time.Millisecond
	obeyEvery   = 25 * time.Millisecond
	decideEvery = 20 * time.Millisecond
	askTime     = time.Second
	leadTime    = 20 * time.Millisecond // before the end of the lease, to be done with letting go
	beatTTL     = 10 * time.Second
	lastWord    = 300 * time.Millisecond // a member that is handed over has no more time
	handAgain   = 2 * time.Second        // a process that holds the address is started again
)

// Options are what the face needs. All fields but Events are required.
type Options struct {
	Name      string       // of the deployment
	Address   netip.Prefix // what floats, with the length of its network
	Interface string
	Member    string
	Store     coord.Store
	Command   []string                     // argv that runs RunHolder
	Healthy   func() (ok bool, why string) // whether this member should hold it
	Lease     time.Duration
	Margin    time.Duration
	Silence   time.Duration
	Clock     clock.Clock
	Log       *slog.Logger
	Events    event.Sink
}

// Face keeps the address.
type Face struct {
	o    Options
	hand *hand

	mu     sync.Mutex // guards known
	known  known
	news   chan struct{} // something to obey; capacity one
	report atomic.Pointer[Report]
	due    chan struct{} // a report that should not wait; capacity one
	aware  bool          // a read has returned a document; Run's own
	// notUnder is the epoch in which this member was the holder already when this process began; Run's own.
	notUnder uint64
	broken   string        // why there is no process that could hold it; Run's own
	ill      time.Duration // uptime since which this member is not healthy; zero: it is; Run's own
	moves    atomic.Uint64
}

// known is this member's copy of the document.
type known struct {
	doc  Doc
	rev  coord.Rev
	read time.Duration // uptime at the start of the latest read that returned this epoch; zero: none
}

// New returns the face of one address.
func New(o Options) (*Face, error) {
	if !o.Address.IsValid() || o.Interface == "" || o.Store == nil || o.Clock == nil || o.Log == nil || o.Healthy == nil || len(o.Command) == 0 || o.Lease <= 0 {
		return nil, errors.New("address: Address, Interface, Store, Clock, Log, Healthy, Command and Lease are required")
	}
	if o.Events == nil {
		o.Events = func(event.Event) {}
	}
	f := &Face{o: o, news: make(chan struct{}, 1), due: make(chan struct{}, 1)}
	f.hand = newHand(o)
	f.report.Store(&Report{Member: o.Member})
	return f, nil
}

// Holding reports whether the address is here, and how often it came or went.
func (f *Face) Holding() (here bool, moves uint64) { return f.report.Load().Holding, f.moves.Load() }

// Agreed is what this member knows to be agreed, and whether it knows that by a read of lately.
func (f *Face) Agreed() (doc Doc, fresh bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known.doc, f.known.read > 0 && f.o.Clock.Uptime()-f.known.read < f.o.Lease+askTime
}

// Run keeps the address until ctx ends, and lets go of it.
func (f *Face) Run(ctx context.Context) error {
	loops, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	for _, loop := range []func(context.Context){f.follow, f.decideLoop, f.reportLoop} {
		all.Go(func() { loop(loops) })
	}
	for ctx.Err() == nil {
		err := f.hand.start(f.news)
		if err == nil {
			err = f.obey(ctx)
			f.hand.stop()
		}
		switch {
		case ctx.Err() != nil:
		case err != nil && f.hand.lived() > handAgain: // the next one begins by letting go: nobody else is named so soon
			f.o.Log.Error("what holds the floating address is started again", "err", err)
		default:
			f.o.Log.Error("this member cannot hold the floating address", "err", err, "again_in", handAgain)
			f.broken = err.Error()
			f.say(Doc{}, false)
			select {
			case <-ctx.Done():
			case <-time.After(handAgain):
			}
			f.broken = ""
		}
	}
	cancel()
	all.Wait()
	f.letGo(ctx)
	return ctx.Err()
}

// letGo says that the address was given back, so that nobody has to wait for the lease.
func (f *Face) letGo(ctx context.Context) {
	r := *f.report.Load()
	r.Holding, r.Healthy, r.Gone, r.Anew, r.Why = false, false, true, false, "it is stopping"
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWord)
	defer cancel()
	f.send(ctx, r)
}

// follow keeps the copy of the document current.
func (f *Face) follow(ctx context.Context) {
	pushed := f.o.Store.Watch(ctx, keyAddress+f.o.Name)
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	for {
		begun := f.o.Clock.Uptime()
		asking, cancel := context.WithTimeout(ctx, min(askTime, f.o.Lease/2)) // one that is stuck must not cost the lease
		doc, err := f.o.Store.Get(asking, keyAddress+f.o.Name)
		cancel()
		if err == nil {
			f.learn(doc, begun)
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case d, ok := <-pushed:
				if !ok {
					pushed = nil
					continue
				}
				waiting = !f.learn(d, 0) // a new one is read at once: a lease counts from a read
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// learn takes a version of the document, and reports whether it is new. read is the start of the read; zero: it was pushed.
func (f *Face) learn(d coord.Doc, read time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d.Rev < f.known.rev {
		return false
	}
	next := known{rev: d.Rev, read: read}
	if err := json.Unmarshal(d.Value, &next.doc); err != nil || next.doc.Format != docFormat {
		f.o.Log.Error("the document of the floating address is not usable", "rev", d.Rev, "err", err)
		return false
	}
	fresh := d.Rev > f.known.rev
	if next.doc.Epoch == f.known.doc.Epoch {
		next.read = max(next.read, f.known.read)
	}
	f.known = next
	nudge(f.news)
	return fresh
}

func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// obey has the address held, or let go of, as the document says.
func (f *Face) obey(ctx context.Context) error {
	tick := time.NewTicker(obeyEvery)
	defer tick.Stop()
	for {
		f.mu.Lock()
		k := f.known
		f.mu.Unlock()
		until := time.Duration(0)
		if !f.aware && k.read > 0 {
			f.aware = true
			if k.doc.Holder == f.o.Member {
				f.notUnder = k.doc.Epoch // an earlier process may have said that it let go under it
			}
		}
		if k.doc.Phase == PhaseHeld && k.doc.Holder == f.o.Member && k.read > 0 && k.doc.Epoch > f.notUnder {
			until = k.read + f.o.Lease - leadTime
		}
		holding, err := f.hand.hold(until)
		if err != nil {
			return err
		}
		f.say(k.doc, holding)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.news:
		case <-tick.C:
		}
	}
}

// say makes the report of the moment.
func (f *Face) say(doc Doc, holding bool) {
	r := Report{Member: f.o.Member, Epoch: doc.Epoch, Holding: holding}
	r.Anew = doc.Epoch > 0 && doc.Epoch == f.notUnder
	r.Healthy, r.Why = f.healthy()
	old := f.report.Swap(&r)
	if *old != r {
		nudge(f.due)
	}
	if old.Holding != r.Holding {
		f.moves.Add(1)
		text := fmt.Sprintf("let go of the address %s", f.o.Address)
		if r.Holding {
			text = fmt.Sprintf("holds the address %s on %s", f.o.Address, f.o.Interface)
		}
		f.o.Log.Info(text, "epoch", doc.Epoch, "why", doc.Why)
		f.o.Events(event.Event{At: f.o.Clock.Now(), Kind: "address", Epoch: doc.Epoch, Text: text})
	}
}

// healthy is Healthy, when that has lasted: a store that is away for a moment is away for all, and comes back to some of them first.
func (f *Face) healthy() (bool, string) {
	if f.broken != "" {
		return false, f.broken
	}
	ok, why := f.o.Healthy()
	if ok {
		f.ill = 0
		return true, ""
	}
	if f.ill == 0 {
		f.ill = f.o.Clock.Uptime()
	}
	return f.report.Load().Healthy && f.o.Clock.Uptime()-f.ill < f.o.Lease, why
}

// reportLoop tells the controller how it stands.
func (f *Face) reportLoop(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		f.send(ctx, *f.report.Load())
		select {
		case <-ctx.Done():
			return
		case <-f.due:
		case <-tick.C:
		}
	}
}

func (f *Face) send(ctx context.Context, r Report) {
	b, err := json.Marshal(r)
	if err != nil {
		f.o.Log.Error("encode a report", "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if err := f.o.Store.Send(ctx, beatAddress+f.o.Name+"/"+r.Member, b, beatTTL); err != nil {
		f.o.Log.Debug("report about the address", "err", err)
	}
}
