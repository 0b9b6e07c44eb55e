// SPDX-License-Identifier: Apache-2.0

// Package kit holds the parts that stores whose members talk to each other are built of: frames, the two ends of a stream
// to the controller, questions between members, and what a controller keeps in memory (reports, ages of reads, watches).
//
// It is not a store, elects nobody and agrees on nothing; raftstore and seat do. Its invariants: a frame of more than its
// limit is never read, a queue that is full ends its stream rather than grow, and watches never go back. No goroutines of
// its own, except the short ones that end watches when their context does.
package kit

import "sync"

// Signal tells any number of waiters that something changed.
type Signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// Next returns a channel that is closed at the next Fire. Take it before looking.
func (g *Signal) Next() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch == nil {
		g.ch = make(chan struct{})
	}
	return g.ch
}

// Fire tells those who wait.
func (g *Signal) Fire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch != nil {
		close(g.ch)
		g.ch = nil
	}
}

// Group runs goroutines that somebody waits for, and starts no more once that began.
type Group struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// Spawn runs f in a goroutine that Wait waits for; false, and not at all, once Wait was called.
func (g *Group) Spawn(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Go(f)
	return true
}

// Wait returns when everything has ended that was spawned.
func (g *Group) Wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
