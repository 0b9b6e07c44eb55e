// SPDX-License-Identifier: Apache-2.0

// Package sim is a deterministic world for the shipped decisions (failover, converge): one seed, one goroutine, virtual
// time. Servers replicate with offsets and histories as real ones do (SAFETY.md), hosts have clocks that drift and stop,
// networks cut, delay, lose and reorder, stores go away, controllers move, operators interfere; checkers watch.
// It is test-only and must stay reproducible: no map iteration decides anything, nothing reads the real clock.
package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// Options choose one world.
type Options struct {
	Seed  uint64
	Trace bool // keep the timeline
}

// Result is what became of it.
type Result struct {
	Seed      uint64
	Shape     string
	Violation string // empty: every checker was content
	Timeline  []string
	Rules     map[string]int // decisions that swapped, by rule
	Acked     int
	Events    int
	Pledged   int  // rounds of pledges that extended a primary's lease
	Asked     bool // it ended waiting for an operator, rightly
}

const (
	duration  = 30 * time.Second // of virtual time
	healAt    = 20 * time.Second // no fault after that
	settledAt = 26 * time.Second // from here on writes must succeed
)

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

// queue is a binary heap by (time, sequence). container/heap would box every event, which costs a seventh of the time.
type queue []event

func (e event) before(f event) bool { return e.at < f.at || e.at == f.at && e.seq < f.seq }

func (q *queue) push(e event) {
	h := append(*q, e)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !e.before(h[up]) {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = e
	*q = h
}

func (q *queue) pop() event {
	h := *q
	first, last := h[0], h[len(h)-1]
	h[len(h)-1] = event{}
	h = h[:len(h)-1]
	i := 0
	for n := len(h); ; {
		down := 2*i + 1
		if down >= n {
			break
		}
		if down+1 < n && h[down+1].before(h[down]) {
			down++
		}
		if !h[down].before(last) {
			break
		}
		h[i] = h[down]
		i = down
	}
	if len(h) > 0 {
		h[i] = last
	}
	*q = h
	return first
}

// persistence is what a server finds on its disk when it starts again.
type persistence string

const (
	persistNone persistence = "none"
	persistRDB  persistence = "rdb"
	persistAOF  persistence = "aof"
)

type world struct {
	rng     *rand.Rand
	now     time.Duration
	seq     uint64
	events  queue
	n       int
	spec    topo.Spec
	persist persistence
	hosts   []*host
	store   *store
	cut     [][]bool // cut[i][j]: messages from host i to host j are lost
	loss    float64
	slow    float64 // share of messages that are delayed much
	readAge bool    // the store knows when each member last read (coord.ReadAges)
	unlucky bool    // see luck
	open    bool    // no server lets its ACLs be changed
	strikes int     // that turns may still bring

	changing  bool // see changes
	faultless bool // for tests that bring their own
	roster    int  // nodes that the roster begins with
	eager     int  // planted

	acked         []*entry
	nextWrite     uint64
	nextRun       int
	ghost         *server // a replica that nobody registered
	lastAck       time.Duration
	quietAcks     int
	pledgedRounds int // that extended a primary's lease
	rules         map[string]int
	quiet         map[string]int // swaps by rule after settledAt
	epochSeen     topo.Epoch
	violation     string
	lostIn        topo.Epoch // whose primary lost its disk when all servers died; 0: none did
	asked         bool       // it ended waiting for an operator, rightly
	trace         bool
	timeline      []string
	handled       int
}

func newWorld(o Options) *world {
	w := &world{rng: rand.New(rand.NewPCG(o.Seed, 0x5eed)), trace: o.Trace, rules: map[string]int{}, quiet: map[string]int{}}
	w.luck(o.Seed)
	w.n = []int{2, 3, 3, 3, 3, 5}[w.rng.IntN(6)]
	w.persist = []persistence{persistNone, persistRDB, persistAOF}[w.rng.IntN(3)]
	w.readAge = w.rng.IntN(2) == 0
	w.loss = []float64{0, 0, 0.02, 0.1}[w.rng.IntN(4)]
	w.slow = []float64{0, 0.02, 0.1}[w.rng.IntN(3)]
	w.spec = topo.Spec{Deployment: "sim", Durability: topo.Quorum, AckReplicas: w.n / 2, Timing: topo.LANTiming()}
	if w.rng.IntN(4) == 0 && !w.unlucky { // an unlucky world is about acknowledged writes
		w.spec.Durability, w.spec.AckReplicas = topo.Async, 0
	}
	w.roster = w.n
	w.changes(o.Seed)
	for i := range w.roster {
		id := topo.NodeID(fmt.Sprintf("n%d", i+1))
		w.spec.Nodes = append(w.spec.Nodes, topo.Node{ID: id, Addr: string(id)})
	}
	w.cut = make([][]bool, w.n)
	for i := range w.cut {
		w.cut[i] = make([]bool, w.n)
	}
	w.store = newStore(w)
	for i := range w.n {
		w.hosts = append(w.hosts, newHost(w, i))
	}
	return w
}

// Run plays one world to its end, or to the first violation.
func Run(o Options) Result {
	w := newWorld(o)
	for _, h := range w.hosts {
		h.start()
	}
	w.store.start()
	w.planFaults()
	w.planOutages(o.Seed)
	w.planChanges()
	if !w.open { // open replication counts strangers, and is said to (SAFETY A7)
		w.planGhost()
	}
	w.after(0, w.checkTick)
	for len(w.events) > 0 && w.violation == "" {
		e := w.events.pop()
		if e.at > duration {
			break
		}
		w.now = e.at
		w.handled++
		e.do()
	}
	if w.violation == "" {
		w.checkEnd()
	}
	return Result{
		Seed: o.Seed, Violation: w.violation, Timeline: w.timeline, Rules: w.rules, Acked: len(w.acked), Events: w.handled, Asked: w.asked, Pledged: w.pledgedRounds,
		Shape: fmt.Sprintf("n=%d %s k=%d %s readage=%v loss=%.2f slow=%.2f unlucky=%v open=%v%s", w.n, w.spec.Durability, w.spec.AckReplicas, w.persist, w.readAge, w.loss, w.slow, w.unlucky, w.open, w.changeShape()),
	}
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	w.events.push(event{w.now + max(d, 0), w.seq, do})
}

// log keeps the timeline. It costs a third of a world's time, so it is kept only where somebody will read it; a seed that
// fails is played again with it.
func (w *world) log(format string, args ...any) {
	if !w.trace {
		return
	}
	w.timeline = append(w.timeline, fmt.Sprintf("%9.3fs ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	if w.violation == "" {
		w.violation = fmt.Sprintf(format, args...)
		w.log("VIOLATION %s", w.violation)
	}
}

// delay draws how long a message travels.
func (w *world) delay() time.Duration {
	d := time.Duration(100+w.rng.IntN(900)) * time.Microsecond
	if w.rng.Float64() < w.slow {
		d += time.Duration(w.rng.IntN(150)) * time.Millisecond
	}
	return d
}

func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

// lossy reports whether an unacknowledged message (beat, push) is lost.
func (w *world) lossy() bool { return w.rng.Float64() < w.loss }

func (w *world) host(id topo.NodeID) *host {
	for _, h := range w.hosts {
		if h.id == id {
			return h
		}
	}
	return nil
}

func planted(name string) bool { return invariant.Planted(name) }
