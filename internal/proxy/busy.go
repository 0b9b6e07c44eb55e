// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/internal/slots"
	"redoubt/internal/topk"
)

// What clients do most is measured only while somebody asks: one pointer is looked at for each reply otherwise. Meanwhile every so
// many replies are looked at, so many that a loop spends a known part of its time on it, and all that are large.
const (
	tapKeys     = 256 // counted at once by each loop
	tapSizes    = 64
	tapBig      = 4 << 10               // bytes of a command or a reply from which on it is looked at in any case
	tapPace     = 4000                  // replies that a loop looks at in a second, about
	tapPause    = 20 * time.Millisecond // between two looks at that pace
	tapStride   = 1 << 12               // replies between two that are looked at, at most
	tapKeysEach = 16                    // of one command
	tapMax      = 60 * time.Second      // how long anybody may watch
)

// ErrWatched: somebody else is watching.
var ErrWatched = errors.New("the load is being measured for somebody else: try again in a moment")

// crowd is what replies are told to while somebody watches.
type crowd struct {
	table func() *route.Table
	parts []*crowdPart // one for each loop
}

// crowdPart is that of one loop and of the goroutines that drive its clients, which seldom meet: what is behind mu is used for the replies
// that are looked at alone.
type crowdPart struct {
	commands atomic.Int64
	next     atomic.Int64 // the one that is looked at next; those before it are passed over
	floor    atomic.Int64 // of sizes

	mu     sync.Mutex
	stride int64 // the length of the present block, of which one is looked at
	block  int64 // where it begins
	looks  int64
	since  time.Time
	load   topk.Load
	hot    *topk.Sketch
	big    *topk.Sizes
	parser resp.Parser
	at     []int
}

func newCrowdPart(now time.Time, cluster bool) *crowdPart {
	part := &crowdPart{stride: 1, since: now, hot: topk.New(tapKeys), big: topk.NewSizes(tapSizes)}
	part.floor.Store(tapBig)
	if cluster {
		part.load.Slots = make([]int64, slots.Count)
	}
	return part
}

// Watch measures for some time what clients do. One at a time can.
func (p *Proxy) Watch(ctx context.Context, d time.Duration) (topk.Load, error) {
	t := &crowd{table: p.table.Load}
	now := time.Now()
	for range p.loops {
		t.parts = append(t.parts, newCrowdPart(now, p.o.Cluster))
	}
	if !p.crowd.CompareAndSwap(nil, t) {
		return topk.Load{}, ErrWatched
	}
	defer p.crowd.Store(nil)
	timer := time.NewTimer(min(d, tapMax))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return topk.Load{}, ctx.Err()
	case <-p.ctx.Done():
		return topk.Load{}, p.ctx.Err()
	}
	return t.sum(time.Since(now)), nil
}

// sum adds up the parts.
func (t *crowd) sum(d time.Duration) topk.Load {
	var all []topk.Load
	for _, p := range t.parts {
		p.mu.Lock()
		l := p.load
		l.MS, l.Commands, l.Hot, l.Big, l.Slots = d.Milliseconds(), p.commands.Load(), p.hot.Top(tapKeys), p.big.Top(tapSizes), slices.Clone(l.Slots)
		p.mu.Unlock()
		all = append(all, l)
	}
	return topk.Join(all...)
}

// see takes a command and its reply; size is that of the reply. Most are passed over.
func (t *crowd) see(s *session, raw []byte, size int) {
	p := t.parts[s.sock.loop.index%len(t.parts)]
	n := p.commands.Add(1)
	due := n >= p.next.Load()
	large := max(int64(len(raw)), int64(size))
	if !due && large <= p.floor.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parser.Reset()
	taken, err := p.parser.Next(raw, resp.Limits{})
	if err != nil || taken == 0 || len(p.parser.Args) == 0 {
		return // inline, or it passes as it arrives
	}
	args := p.parser.Args
	row := t.table().Lookup(args[0])
	p.at = row.Keys(args, p.at[:0])
	if large > p.floor.Load() && len(p.at) > 0 {
		p.big.Add(args[p.at[0]], large, row.Name)
		p.floor.Store(max(tapBig, p.big.Floor()))
	}
	if !due {
		return
	}
	p.count(row, args, int64(len(raw)+size))
	p.block = max(p.block+p.stride, n+1)
	p.pace()
	p.next.Store(p.block + rand.Int64N(p.stride)) // one of each block, by chance: what repeats itself, like a pipeline, would meet a fixed stride always at the same command
}

// passes is told of a command that is too long to be kept, by its first arguments.
func (t *crowd) passes(s *session, args [][]byte, size int) {
	p := t.parts[s.sock.loop.index%len(t.parts)]
	p.mu.Lock()
	defer p.mu.Unlock()
	row := t.table().Lookup(args[0])
	p.at = row.Keys(args, p.at[:0])
	if len(p.at) > 0 && int64(size) > p.floor.Load() {
		p.big.Add(args[p.at[0]], int64(size), row.Name)
		p.floor.Store(max(tapBig, p.big.Floor()))
	}
}

// count counts a command for as many as it stands for.
func (p *crowdPart) count(row *route.Row, args [][]byte, bytes int64) {
	write := row.Flags&route.Readonly == 0
	if write {
		p.load.Writes += p.stride
	} else {
		p.load.Reads += p.stride
	}
	p.load.Bytes += p.stride * bytes
	keys := p.at[:min(len(p.at), tapKeysEach)]
	for _, i := range keys {
		p.hot.Add(args[i], p.stride, write, bytes/int64(len(keys)))
	}
	if p.load.Slots != nil && len(keys) > 0 {
		p.load.Slots[slots.Of(args[keys[0]])] += p.stride
	}
}

// pace chooses how many replies are passed over, now and then.
func (p *crowdPart) pace() {
	if p.looks++; p.looks < tapPace*int64(tapPause)/int64(time.Second) {
		return
	}
	now := time.Now()
	switch took := now.Sub(p.since); {
	case took < tapPause && p.stride < tapStride:
		p.stride *= 2
	case took > 4*tapPause && p.stride > 1:
		p.stride /= 2
	}
	p.looks, p.since = 0, now
}
