// SPDX-License-Identifier: Apache-2.0

package seat

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
	"redoubt/internal/coord/kit"
)

// memory is a store outside, in memory; members have views on it that can be cut off.
type memory struct {
	mu   sync.Mutex
	rev  coord.Rev
	docs map[string]coord.Doc
	hub  *kit.Hub
}

// outlook is the memory as one member reaches it.
type outlook struct {
	m *memory

	mu       sync.Mutex
	cut      bool          // nothing gets through
	unsure   bool          // swaps happen and say that they may not have
	readonly bool          // swaps are refused
	swaps    int           // that were carried out
	slow     *sluice       // nil: swaps are not held up
	list     time.Duration // how long a read of the list of members takes
}

// sluice holds a swap of one document up, before and after it is carried out.
type sluice struct {
	key           string
	begun         chan struct{} // closed when a swap has come
	write, answer chan struct{} // closed to let it go on
}

func newSluice(key string) *sluice {
	return &sluice{key, make(chan struct{}), make(chan struct{}), make(chan struct{})}
}

func (o *outlook) set(do func(*outlook)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	do(o)
}

func (o *outlook) away(ctx context.Context) error {
	o.mu.Lock()
	cut := o.cut
	o.mu.Unlock()
	if !cut {
		return nil
	}
	<-ctx.Done()
	return fmt.Errorf("cut off: %w", coord.ErrUnavailable)
}

func (o *outlook) Read(ctx context.Context, keys ...string) (map[string]coord.Doc, error) {
	if slices.Contains(keys, keyRoll) && o.list > 0 {
		<-time.After(o.list)
	}
	if err := o.away(ctx); err != nil {
		return nil, err
	}
	docs := map[string]coord.Doc{}
	o.m.mu.Lock()
	for _, k := range keys {
		if d, ok := o.m.docs[k]; ok {
			docs[k] = kit.Clone(d)
		}
	}
	o.m.mu.Unlock()
	return docs, nil
}

func (o *outlook) Swap(ctx context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	if err := o.away(ctx); err != nil {
		return 0, err
	}
	o.mu.Lock()
	slow := o.slow
	o.mu.Unlock()
	if slow != nil && slow.key == key {
		close(slow.begun)
		<-slow.write
		defer func() { <-slow.answer }()
	}
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	o.mu.Lock()
	readonly := o.readonly
	o.mu.Unlock()
	if readonly {
		return 0, fmt.Errorf("read-only: %w", coord.ErrUnavailable)
	}
	if o.m.docs[key].Rev != old {
		return 0, coord.ErrConflict
	}
	o.m.rev++
	d := kit.Clone(coord.Doc{Key: key, Value: value, Rev: o.m.rev})
	o.m.docs[key] = d
	o.m.hub.Learn(d)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.swaps++
	if o.unsure {
		return 0, coord.ErrUnsure
	}
	return d.Rev, nil
}

func (o *outlook) Follow(ctx context.Context, key string, learn func(coord.Doc)) {
	for d := range o.m.hub.Watch(ctx, key) {
		o.mu.Lock()
		cut := o.cut
		o.mu.Unlock()
		if !cut {
			learn(d)
		}
	}
}

func (o *outlook) Health() coord.Health { return coord.Health{Kind: "memory"} }
func (o *outlook) Close() error         { return nil }

// party is a running deployment.
type party struct {
	t      testing.TB
	memory *memory
	views  []*outlook
	stores []*Store
}

func newParty(t testing.TB, n int) *party {
	p := &party{t: t, memory: &memory{docs: map[string]coord.Doc{}, hub: kit.NewHub()}}
	for i := range n {
		p.views, p.stores = append(p.views, &outlook{m: p.memory}), append(p.stores, nil)
		p.open(i)
	}
	t.Cleanup(func() {
		for _, s := range p.stores {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		p.memory.hub.Close()
	})
	return p
}

func (p *party) open(i int) {
	p.t.Helper()
	addr := "127.0.0.1:0"
	if p.stores[i] != nil {
		addr = p.stores[i].Addr()
	}
	s, err := Open(p.views[i], Options{ID: fmt.Sprint("m", i+1), ListenAddr: addr, Log: testLog()})
	if err != nil {
		p.t.Fatal(err)
	}
	p.stores[i] = s
}

// testLog is silent unless REDOUBT_TEST_LOG is set.
func testLog() *slog.Logger {
	var to io.Writer = io.Discard
	if os.Getenv("REDOUBT_TEST_LOG") != "" {
		to = os.Stderr
	}
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// controller waits until there is exactly one that all reachable members know, and returns its place.
func (p *party) controller(except ...int) int {
	p.t.Helper()
	at := -1
	coordtest.Until(p.t, "all members know one controller", func() bool {
		name := ""
		at = -1
		for i, s := range p.stores {
			skip := false
			for _, x := range except {
				skip = skip || x == i
			}
			if skip {
				continue
			}
			if s.office.Load() != nil {
				at = i
			}
			c := s.Controller()
			if c == "" || name != "" && c != name {
				return false
			}
			name = c
		}
		return at >= 0 && name == fmt.Sprint("m", at+1)
	})
	return at
}

func (p *party) cluster() *coordtest.Cluster {
	c := &coordtest.Cluster{Depose: func(_ testing.TB, id string) {
		for i, v := range p.views {
			if fmt.Sprint("m", i+1) == id {
				v.set(func(o *outlook) { o.cut = true })
			}
		}
	}}
	coordtest.Until(p.t, "all members know each other", func() bool {
		for _, s := range p.stores {
			if r := s.roll.Load(); r == nil || len(r.Members) < len(p.stores) {
				return false
			}
		}
		return true
	})
	for i, s := range p.stores {
		c.IDs, c.Stores = append(c.IDs, fmt.Sprint("m", i+1)), append(c.Stores, s)
	}
	return c
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheContractIsKeptOverDocumentsAlone(t *testing.T) {
	start := func(t testing.TB, n int) *coordtest.Cluster { return newParty(t, n).cluster() }
	for _, n := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) { coordtest.RunSize(t, start, n) })
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
