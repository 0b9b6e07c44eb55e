// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/ring"
)

// placement is where keys belong now. With ring.eject-after, for caches, shards that cannot be used are left out of it, as
// twemproxy does with auto_eject_hosts: their keys belong to others until they are back, and what was written meanwhile stays
// where it is.
type placement struct {
	all *ring.Ring
	now atomic.Pointer[ring.Ring]
}

func newPlacement(s ring.Spec) (*placement, error) {
	r, err := ring.New(s)
	if err != nil {
		return nil, err
	}
	p := &placement{all: r}
	p.now.Store(r)
	return p, nil
}

// shard names the shard of a key. Safe for concurrent use.
func (p *placement) shard(key []byte) int { return p.now.Load().Shard(key, rand.Uint32()) }

// ejectEvery is how often a member looks whether it can use each shard.
const ejectEvery = 100 * time.Millisecond

// eject leaves out of the placement what cannot be used for as long as after, and takes it back at once when it can. Each member does that
// for itself, by what it reaches. The last shard stays. Each shard is looked at by a goroutine of its own, because a
// look may take as long as a connection.
func (m *member) eject(ctx context.Context, p *placement, after time.Duration) error {
	type verdict struct {
		shard int
		ok    bool
	}
	verdicts := make(chan verdict)
	var lookers sync.WaitGroup
	defer lookers.Wait()
	for i, u := range m.units {
		lookers.Go(func() {
			for {
				select {
				case verdicts <- verdict{i, u.proxy.Reaches()}:
				case <-ctx.Done():
					return
				}
				select {
				case <-time.After(ejectEvery):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	e := ejection{since: make([]time.Duration, len(m.units)), out: make([]bool, len(m.units)), after: after}
	for i := range e.since {
		e.since[i] = never
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case v := <-verdicts:
			if !e.look(v.shard, v.ok, m.clock.Uptime()) {
				continue
			}
			gone := e.gone()
			p.now.Store(p.all.Without(gone...))
			m.log.Warn("shards that cannot be used are left out of the ring", "shard", m.units[v.shard].deploy.ID(), "back", v.ok, "out", len(gone))
		}
	}
}

const never = time.Duration(-1)

// ejection remembers since when each shard cannot be used, and which are left out.
type ejection struct {
	since []time.Duration // uptime; never: it can be used
	out   []bool
	after time.Duration
}

// look notes whether a shard can be used, and tells whether the placement changes.
func (e *ejection) look(i int, ok bool, now time.Duration) bool {
	switch {
	case ok:
		was := e.out[i]
		e.since[i], e.out[i] = never, false
		return was
	case e.since[i] == never:
		e.since[i] = now
	}
	if e.out[i] || now-e.since[i] < e.after || len(e.gone()) == len(e.out)-1 {
		return false
	}
	e.out[i] = true
	return true
}

func (e *ejection) gone() []int {
	var gone []int
	for i, out := range e.out {
		if out {
			gone = append(gone, i)
		}
	}
	return gone
}
