// SPDX-License-Identifier: Apache-2.0

// Package memstore is a store in memory: the model of coord.Store that tests and simulations use. It has the same
// contract as the real stores (coordtest proves it), works in testing/synctest bubbles, and has switches for what real
// stores suffer: cut members, outages, swaps of unknown outcome, a controller that moves. It is not for production:
// nothing is kept. Its invariant: every operation happens at one instant, under one lock, so it is linearizable.
// No goroutines, except the short ones that end watches when their context does.
package memstore

import (
	"sort"
	"sync"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// Cluster is the store: the documents, the controller's seat and the members' handles. Safe for concurrent use.
type Cluster struct {
	clock clock.Clock
	began time.Time

	mu       sync.Mutex
	docs     map[string]coord.Doc
	members  map[string]*Store
	addrs    map[string]string
	term     uint64
	seat     *lease // nil while there is no controller
	seatedAt time.Duration
	queue    []*candidate // campaigns in the order in which they began
	prefer   string       // this member takes the seat next, as soon as it campaigns
	down     bool
	beats    map[string]beat
	reads    map[readKey]reading
	unsure   []bool // outcomes of coming swaps: true applies and answers ErrUnsure, false only answers it
}

type beat struct {
	body    []byte
	arrived time.Time
	ttl     time.Duration
}

// New returns a store whose members have the given ids. The clock serves ReadAge alone; nil counts on package time,
// which is fake inside a synctest bubble.
func New(c clock.Clock, ids ...string) *Cluster {
	cl := &Cluster{clock: c, began: time.Now(), docs: map[string]coord.Doc{}, members: map[string]*Store{},
		addrs: map[string]string{}, beats: map[string]beat{}, reads: map[readKey]reading{}}
	for _, id := range ids {
		cl.addrs[id] = id + ":0"
		cl.Member(id)
	}
	return cl
}

// Member returns the handle of the member with that id, made on first use.
func (c *Cluster) Member(id string) *Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.members[id]; s != nil {
		return s
	}
	s := &Store{c: c, id: id, known: map[string]coord.Doc{}, subs: map[*sub]struct{}{}, news: kit.NewNews()}
	for k, d := range c.docs {
		s.known[k] = d
	}
	c.members[id] = s
	return s
}

// Reopen replaces the handle of a closed member, as a restarted process would.
func (c *Cluster) Reopen(id string) *Store {
	c.mu.Lock()
	delete(c.members, id)
	c.mu.Unlock()
	return c.Member(id)
}

// Cut separates members from the store: their calls answer ErrUnavailable, pushes do not reach them, and a controller
// among them loses its seat at once.
func (c *Cluster) Cut(ids ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if s := c.members[id]; s != nil {
			s.cut = true
		}
	}
	c.settle()
}

// Heal undoes Cut; the members learn at once what they missed.
func (c *Cluster) Heal(ids ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if s := c.members[id]; s != nil {
			s.cut = false
			c.catchUp(s)
		}
	}
	c.settle()
}

// Outage makes the whole store unavailable (true) or available again (false). There is no controller during an outage.
func (c *Cluster) Outage(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = on
	for _, s := range c.members {
		if !on && !s.cut {
			c.catchUp(s)
		}
	}
	c.settle()
}

// MoveController deposes the controller and keeps the seat for member id until it campaigns.
func (c *Cluster) MoveController(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prefer = id
	if c.seat != nil && c.seat.s.id != id {
		c.vacate()
	}
	c.settle()
}

// NextSwapUnsure makes the next swap that would succeed answer ErrUnsure; applied says whether it happened. Calls add up.
func (c *Cluster) NextSwapUnsure(applied bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsure = append(c.unsure, applied)
}

// Doc returns the present version of a document, for assertions; ok is false when there is none.
func (c *Cluster) Doc(key string) (doc coord.Doc, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	doc, ok = c.docs[key]
	return copyDoc(doc), ok
}

// uptime is the clock of ReadAge.
func (c *Cluster) uptime() time.Duration {
	if c.clock == nil {
		return time.Since(c.began) + 1
	}
	return c.clock.Uptime()
}

// reachable reports whether member s can use the store. Callers hold c.mu.
func (c *Cluster) reachable(s *Store) bool { return !c.down && !s.cut && !s.closed }

// vacate empties the seat. Callers hold c.mu.
func (c *Cluster) vacate() {
	close(c.seat.lost)
	c.seat = nil
	clear(c.beats)
	clear(c.reads)
}

// settle takes the seat from a member that cannot hold it and gives it to the first campaign that may. Callers hold c.mu.
func (c *Cluster) settle() {
	if c.seat != nil && !c.reachable(c.seat.s) {
		c.vacate()
	}
	if c.seat != nil {
		return
	}
	for i, k := range c.queue {
		if !c.reachable(k.s) || c.prefer != "" && c.prefer != k.s.id {
			continue
		}
		c.queue = append(c.queue[:i:i], c.queue[i+1:]...)
		c.term++
		c.prefer = ""
		c.seat = &lease{s: k.s, term: c.term, lost: make(chan struct{})}
		c.seatedAt = c.uptime()
		k.won <- c.seat
		return
	}
}

// catchUp pushes everything that s has not seen. Callers hold c.mu.
func (c *Cluster) catchUp(s *Store) {
	if !c.reachable(s) {
		return
	}
	keys := make([]string, 0, len(c.docs))
	for k := range c.docs {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		s.learn(c.docs[k])
	}
}

func copyDoc(d coord.Doc) coord.Doc {
	d.Value = append([]byte(nil), d.Value...)
	return d
}
