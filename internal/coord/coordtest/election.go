// SPDX-License-Identifier: Apache-2.0

package coordtest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"redoubt/internal/coord"
)

type holder struct {
	id    string
	store coord.Store
	lease coord.Lease
}

// campaign lets every member campaign until the test ends. Holders arrive in the order in which they learned of it.
func campaign(t *testing.T, c *Cluster) <-chan holder {
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan holder, 64)
	done := make(chan struct{})
	for i, s := range c.Stores {
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				l, err := s.Campaign(ctx)
				if err != nil {
					return
				}
				out <- holder{c.IDs[i], s, l}
				select {
				case <-l.Lost():
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	t.Cleanup(func() {
		cancel()
		for range c.Stores {
			<-done
		}
	})
	return out
}

func next(t *testing.T, holders <-chan holder) holder {
	t.Helper()
	select {
	case h := <-holders:
		return h
	case <-bounded(t).Done():
		t.Fatal("nobody became the controller")
	}
	return holder{}
}

func wait(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-bounded(t).Done():
		t.Fatalf("waited %s in vain: %s", patience, what)
	}
}

func oneController(t *testing.T, c *Cluster) {
	holders := campaign(t, c)
	var last uint64
	for range 3 {
		h := next(t, holders)
		if h.lease.Term() <= last {
			t.Fatalf("term %d after %d", h.lease.Term(), last)
		}
		last = h.lease.Term()
		for _, s := range c.Stores {
			Until(t, "all members know the controller", func() bool { return s.Controller() == h.id })
		}
		select {
		case other := <-holders:
			t.Fatalf("%s holds term %d beside %s", other.id, other.lease.Term(), h.id)
		case <-h.lease.Lost():
			t.Fatal("lost without a reason")
		default:
		}
		if err := h.lease.Release(bounded(t)); err != nil && len(c.Stores) > 1 {
			t.Fatalf("release: %v", err)
		}
		if len(c.Stores) == 1 {
			return // nobody else could take it
		}
		wait(t, "the released lease is lost", h.lease.Lost())
	}
}

func deposed(t *testing.T, c *Cluster) {
	if c.Depose == nil || len(c.Stores) < 3 {
		t.Skip("needs a cluster that survives the loss of its controller")
	}
	holders := campaign(t, c)
	first := next(t, holders)
	Put(t, first.store, "k", "before")
	c.Depose(t, first.id)
	wait(t, "the deposed controller learns it", first.lease.Lost())
	second := next(t, holders)
	if second.lease.Term() <= first.lease.Term() {
		t.Fatalf("term %d after %d", second.lease.Term(), first.lease.Term())
	}
	if doc := read(t, second.store, "k"); string(doc.Value) != "before" {
		t.Fatalf("the new controller reads %q", doc.Value)
	}
	Put(t, second.store, "k", "after")
}

func beats(t *testing.T, c *Cluster) {
	campaign(t, c)
	for i, s := range c.Stores {
		Until(t, "a report is taken", func() bool {
			return s.Send(bounded(t), c.IDs[i], []byte("long "+c.IDs[i]), time.Minute) == nil
		})
	}
	for i, s := range c.Stores {
		Until(t, "all reports are seen by "+c.IDs[i], func() bool {
			all, err := s.All(bounded(t))
			for j, id := range c.IDs {
				b, ok := all[id]
				if err != nil || !ok || string(b.Body) != "long "+c.IDs[j] || b.Age < 0 || b.Age > patience {
					return false
				}
			}
			return true
		})
	}
	s := c.Stores[0]
	if err := s.Send(bounded(t), "short", []byte("1"), 30*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	Until(t, "a report expires and others stay", func() bool {
		all, err := s.All(bounded(t))
		_, short := all["short"]
		_, long := all[c.IDs[0]]
		return err == nil && !short && long
	})
}

func arrived(t *testing.T, c *Cluster) {
	holders := campaign(t, c)
	h := next(t, holders)
	for i, s := range c.Stores {
		Until(t, "the controller is told of the report of "+c.IDs[i], func() bool {
			select {
			case h = <-holders: // on a machine under load it may have moved
			default:
			}
			if s.Send(bounded(t), c.IDs[i], []byte("x"), time.Minute) != nil {
				return false
			}
			timer := time.NewTimer(200 * time.Millisecond)
			defer timer.Stop()
			select {
			case <-h.store.Arrived():
				if sieve, ok := h.store.(coord.Sieve); ok {
					names, all := sieve.Fresh()
					return all || slices.Contains(names, c.IDs[i])
				}
				return true
			case <-timer.C:
				return false
			}
		})
	}
}

func readAges(t *testing.T, c *Cluster) {
	h := next(t, campaign(t, c))
	ages, ok := h.store.(coord.ReadAges)
	if !ok {
		t.Skip("the store does not implement it")
	}
	rev := Put(t, h.store, "k", "old")
	reader, id := c.Stores[0], c.IDs[0]
	before, ok := ages.ReadAge(id)
	if !ok {
		t.Fatal("the controller does not know an age")
	}
	read(t, reader, "k")
	began := time.Now()
	read(t, reader, "k")
	if _, err := h.store.Swap(bounded(t), "k", []byte("new"), rev); err != nil {
		t.Fatal(err)
	}
	age, ok := ages.ReadAge(id)
	if most := time.Since(began); !ok || age > most || age < 0 {
		t.Fatalf("age is %s (%t); the read of the old version began at most %s ago", age, ok, most)
	}
	_ = before
	Until(t, "the age grows although new reads of the new version go on", func() bool {
		read(t, reader, "k")
		a, ok := ages.ReadAge(id)
		return ok && a > age+50*time.Millisecond
	})
	for i, s := range c.Stores {
		if a, is := s.(coord.ReadAges); is && c.IDs[i] != h.id {
			if _, ok := a.ReadAge(id); ok {
				t.Errorf("%s is not the controller but knows ages", c.IDs[i])
			}
		}
	}
}

func members(t *testing.T, c *Cluster) {
	h := next(t, campaign(t, c))
	for _, s := range c.Stores {
		ms, ok := s.(coord.Members)
		if !ok {
			t.Skip("the store does not implement it")
		}
		Until(t, "all members are listed, one of them as the controller", func() bool {
			list, err := ms.Members(bounded(t))
			if err != nil || len(list) != len(c.IDs) {
				return false
			}
			for _, m := range list {
				if m.Controller != (m.ID == h.id) || m.Addr == "" {
					return false
				}
			}
			return true
		})
		if len(c.Stores) > 1 {
			if err := ms.RemoveMember(bounded(t), "nobody"); !errors.Is(err, coord.ErrNotFound) {
				t.Errorf("removing a stranger: %v", err)
			}
		}
	}
}
