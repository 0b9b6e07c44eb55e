// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"sync/atomic"

	"redoubt/internal/route"
	"redoubt/internal/topo"
)

// flags of a command on its way.
type flags uint16

const (
	resendable flags = 1 << iota // may be sent again
	commits                      // its reply waits for [marker][WAIT] in quorum mode
	muted                        // CLIENT REPLY OFF or SKIP: the reply is dropped
	replayed                     // sent by the proxy to restore state: not counted, and the reply is dropped
	blocks                       // may wait in the server
	writes                       // remembered for WAIT
	moved                        // not part of its batch any more: on the redo list, or given up
	long                         // too long to be kept: it passed through, and cannot be sent again
	fence                        // on an own connection: the batch before it must be sealed, because no marker may follow
	leased                       // a read that needs no marker while nothing is in doubt (lease.go)
	exact                        // may travel in a transaction of the proxy's own, beside a marker
	cachesYes                    // CLIENT CACHING YES came in front of it, and NO: see caching.go
	cachesNo
)

// op is what the reply to a command changes in the state of an own connection.
type op uint8

const (
	opNone op = iota
	opMulti
	opQueued
	opExec
	opDiscard
	opExecNull  // DISCARD sent in place of EXEC, because a watched key may have changed during a failover
	opExecAbort // DISCARD sent in place of EXEC, because the proxy refused a command of the transaction
	opWatch
	opUnwatch
	opSubscribe
	opUnsubscribe
	opMonitor
	opTracking
	opWait
	opInfo // the proxy's own section follows the server's
	opScan
	opEvalSHA
	opEverywhere
)

// entry is one command on its way.
type entry struct {
	s      *session
	x      *extra
	off, n uint32 // its bytes in the batch; n 0: nothing is sent, x.canned is the reply
	seq    uint32 // order within the session
	at     uint32 // stamp of when it was first parked; 0: never
	flags  flags
	op     op
}

// extra holds what few commands need.
type extra struct {
	data   []byte // the command's bytes, once it has left its batch
	canned []byte // the reply, decided without the server
	ran    []byte // the reply of a read that is to run again, if it cannot after all
	piece  []byte // replies of earlier commands that go out before this one's
	more   int64  // how many commands piece answers
	zero   []byte // WAIT: the answer that vouches for nothing
	txn    *txn
	rest   int // confirmations still to come for (UN)SUBSCRIBE; 0: not known yet
	kind   int // of channel
	until  int64
	index  int // of the timeout among the arguments
	milli  bool
	db     int
	words  [][]byte
	scan   scanNote

	epoch topo.Epoch // WAIT: of the writes that it is about; 0: there are none
}

// item is a command that a session hands to its lane: n bytes of the chunk.
type item struct {
	n     uint32
	flags flags
	op    op
	x     *extra
}

// Bounds of one batch. A session that finds a full batch waits until the lane has sent it.
const (
	batchBytesMax = 4 << 20
	batchKept     = 256 << 10 // memory of larger batches goes back to the heap
	replyKept     = 256 << 10
)

// batch is what goes upstream in one write. It belongs to the lane until it is sent, then to the connection's reader.
type batch struct {
	buf   []byte
	ents  []entry
	head  int  // next entry to be answered
	wants bool // holds an entry that commits
	scans bool // holds an entry with a cursor
	told  bool // holds a (un)subscription: its confirmation comes before messages, so it must not be withheld

	// Once sent:
	primary bool
	epoch   topo.Epoch
	need    need  // what its replies are withheld for
	wrote   int   // bytes that the kernel took; len(buf) when all of them
	tail    int   // replies seen behind those of the entries: marker, WAIT
	got     acked // so far
	bare    bool
	marked  bool   // a marker follows the replies of the entries
	refused bool   // the server did not take it: the WAIT behind it covers nothing of this batch
	full    bool   // … for want of memory
	aside   bool   // its replicas are waited for on another connection
	held    []byte // withheld replies
	ends    []int  // where each entry's reply ends in held
	at      uint32 // stamp of when its replies were complete
	refs    atomic.Int32
	shows   bool   // its writes are counted as visible and not acknowledged
	doubts  uint64 // of the proxy, when it was sent: its acknowledgement settles them

	// Of a lane with exact retry:
	stage  stage      // stageNone: no group
	number uint64     // of the group, once sealed
	asked  int        // commands of the group, its marker included
	queued int        // of them, those that the server has answered for
	pin    *pin       // settles a group that was in doubt
	fate   route.Fate // of a group that is refused: when it may be tried again …
	why    []byte     // … and the server's words
}

func (p *Proxy) newBatch() *batch { return p.batches.Get().(*batch) }

// release gives a batch back when both the writer and the reader are done with it.
func (p *Proxy) release(b *batch) {
	if b.refs.Add(-1) > 0 {
		return
	}
	clear(b.ents)
	if cap(b.buf) > batchKept {
		b.buf = nil
	}
	if cap(b.held) > replyKept {
		b.held = nil
	}
	if cap(b.ents) > 16_384 {
		b.ents = nil
	}
	*b = batch{buf: b.buf[:0], ents: b.ents[:0], held: b.held[:0], ends: b.ends[:0]}
	p.batches.Put(b)
}

// bytes returns an entry's command.
func (b *batch) bytes(e *entry) []byte { return b.buf[e.off : e.off+e.n] }

// need returns e's extra part, made if there is none.
func (e *entry) need() *extra {
	if e.x == nil {
		e.x = &extra{}
	}
	return e.x
}
