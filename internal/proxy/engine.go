// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Engine is a set of event loops. The proxies of one process share one, with whatever stands before them: so a command passes
// from a client to the connections of any shard within one round of a loop.
type Engine struct{ loops []*loop }

// NewEngine makes loops that do nothing until Run is called, which must happen.
func NewEngine(loops int) (*Engine, error) {
	e := &Engine{}
	for i := range loops {
		lp, err := newLoop(i)
		if err != nil {
			e.close()
			return nil, err
		}
		e.loops = append(e.loops, lp)
	}
	return e, nil
}

// close undoes NewEngine.
func (e *Engine) close() {
	for _, lp := range e.loops {
		lp.closeFDs()
	}
}

// start runs the loops; end has them end, and waits for that.
func (e *Engine) start() (end func()) {
	var looping sync.WaitGroup
	for _, lp := range e.loops {
		looping.Go(lp.run)
	}
	return func() {
		for _, lp := range e.loops {
			lp.end()
		}
		looping.Wait()
	}
}

// Run runs the loops until ctx ends. Those who use them must have ended by then.
func (e *Engine) Run(ctx context.Context) error {
	end := e.start()
	<-ctx.Done()
	end()
	return ctx.Err()
}

// Len returns how many loops there are.
func (e *Engine) Len() int { return len(e.loops) }

// Take has a loop drive a connection that was made with the net package, which lets go of it. event is called on the loop whenever
// there may be something to read, room to write, or an end to see: for the first time soon, and possibly before Take returns.
func (e *Engine) Take(conn net.Conn, loop int, event func()) (*Stream, error) {
	lp := e.loops[loop]
	c, err := takeOver(conn, lp)
	if err != nil {
		return nil, err
	}
	st := &Stream{c: c, said: event}
	c.owner = endpoint{f: st}
	watched := lp.post(func() {
		if lp.watch(c, endpoint{f: st}) != nil { // an end is all that there will be to see
			c.shut()
			event()
		}
	})
	if !watched {
		c.close()
		return nil, errors.New("drive a connection: the loops have ended")
	}
	return st, nil
}

// Stream is one end of a connection that a loop drives. Nothing of it waits. It is safe for concurrent use, but for Read, which
// is for one at a time, and Last.
type Stream struct {
	c    *sock
	far  *session // the other end, where that is within the process; constant
	said func()
	gone atomic.Bool
}

// Read reads what has come; nothing, without an error, when that is nothing. The event comes again once there is more, or more
// than was asked for.
func (st *Stream) Read(b []byte) (int, error) {
	n, err := st.c.read(b)
	if n > 0 && (n == len(b) || st.c.hasHungUp()) {
		st.Again()
	}
	if err == errAgain {
		err = nil
	}
	return n, err
}

// Write writes what is taken at once. The event comes when there is room for the rest.
func (st *Stream) Write(b []byte) (int, error) {
	n, err := st.c.write(b)
	if err == errAgain {
		err = nil
	}
	return n, err
}

// Again has the event come once more, soon.
func (st *Stream) Again() { st.c.loop.stir(st.c, unix.EPOLLIN) }

// Last has f called when the events of the loop's present round are handled, so that what they lead to is done at once. On the
// loop only.
func (st *Stream) Last(f func()) { st.c.loop.last = append(st.c.loop.last, f) }

// Late is Last for the next round, which begins without waiting for events. On the loop only.
func (st *Stream) Late(f func()) { st.c.loop.late = append(st.c.loop.late, f) }

// ID returns the number of the client that the other end is, as CLIENT ID says it; nil where that end is not within the process, or was refused.
func (st *Stream) ID() []byte {
	if st.far == nil {
		return nil
	}
	return strconv.AppendUint(nil, st.far.id, 10)
}

// Shut ends both directions; the other side still gets what was written. The event comes.
func (st *Stream) Shut() {
	st.c.shut()
	st.Again()
}

// Close shuts the stream and gives back what it holds. An event may still be on its way.
func (st *Stream) Close() {
	if st.gone.Swap(true) {
		return
	}
	st.c.shut()
	st.c.loop.post(func() { st.c.loop.forget(st.c) })
}

// Release has the loop let go of a connection that was taken: then is called there with its descriptor, which it owns. No event comes any more.
func (st *Stream) Release(then func(fd int)) {
	st.gone.Store(true)
	lp := st.c.loop
	lp.post(func() { then(lp.unwatch(st.c)) }) // loops outlive their clients
}

// Join makes a new client of this proxy, on a loop of the engine that it shares: one that came by the read-write port, so to speak.
// Its connection is memory. Run must have been called, see Running. event is as for Engine.Take.
func (p *Proxy) Join(loop int, event func()) (*Stream, error) {
	select {
	case <-p.running:
	default:
		return nil, fmt.Errorf("join the proxy: it does not run yet")
	}
	near, far := newPipe(p.loops[loop])
	st := &Stream{c: near, said: event}
	near.owner = endpoint{f: st}
	st.far = p.admit(far, false)
	return st, nil
}

// Running is closed once clients are served.
func (p *Proxy) Running() <-chan struct{} { return p.running }
