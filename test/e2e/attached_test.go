// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redisd"
)

// attachedCrew is three members beside servers that the test supervises.
func attachedCrew(t *testing.T) (*crew, status) {
	t.Helper()
	c := newCrew(t)
	c.local = func(string) string { return "{kind: attached}" }
	for _, id := range []string{"n1", "n2", "n3"} {
		c.supervise(id, redisd.FrozenArguments()...)
		c.start(id, "")
	}
	return c, c.d.waitHealthy(20 * time.Second)
}

// fill writes keys through the first proxy.
func (c *crew) fill(prefix string, keys int) {
	c.t.Helper()
	r := c.d.client(0)
	for i := range keys {
		if err := r.Set(c.t.Context(), fmt.Sprintf("%s:%d", prefix, i), strings.Repeat("v", 200), 0).Err(); err != nil {
			c.t.Fatalf("write %s:%d: %v", prefix, i, err)
		}
	}
}

// everywhere waits a moment until all servers hold that many keys: a write needs k replicas, not all.
func (c *crew) everywhere(s status, keys int64) {
	c.t.Helper()
	for _, n := range s.nodes() {
		r := direct(c.t, n)
		c.d.until(2*time.Second, fmt.Sprintf("%s holds %d keys", n.ID, keys), func() (bool, string) {
			size, err := r.DBSize(c.t.Context()).Result()
			return err == nil && size == keys, fmt.Sprintf("%d %v", size, err)
		})
	}
}

func replicaOf(s status) node {
	for _, n := range s.nodes() {
		if n.ID != s.primary() {
			return n
		}
	}
	return node{}
}

func TestAttachedServersFailOverAndComeBackFrozen(t *testing.T) {
	c, s := attachedCrew(t)
	c.fill("before", 100)
	old := s.primary()
	c.killServer(old)
	begun := time.Now()
	c.fill("after", 1)
	t.Logf("first write %.1f ms after the kill", ms(time.Since(begun)))
	c.d.until(5*time.Second, "another primary serves", func() (bool, string) {
		now, err := c.d.status()
		return err == nil && now.phase() == "serving" && now.primary() != old, fmt.Sprintf("%+v %v", now, err)
	})
	c.supervise(old, redisd.FrozenArguments()...)
	now := c.d.waitHealthy(10 * time.Second)
	if now.primary() == old {
		t.Errorf("%s leads again, and it restarted empty", old)
	}
	if n := now.node(old); n.State != "following" || len(n.Problems) > 0 {
		t.Errorf("the restarted server: %+v", n)
	}
	c.everywhere(now, 101)
}

func TestAttachedReplicaThatBootsWritableIsFencedAndNamed(t *testing.T) {
	c, s := attachedCrew(t)
	c.fill("k", 50)
	r := replicaOf(s)
	c.killServer(r.ID)
	c.d.until(5*time.Second, "its end is seen", func() (bool, string) {
		now, err := c.d.status()
		return err == nil && now.node(r.ID).State == "exited", fmt.Sprintf("%+v %v", now, err)
	})
	wait(2 * time.Second) // long enough for an agent to lose its patience
	c.supervise(r.ID)     // without the arguments that make it boot frozen
	begun := time.Now()
	client := direct(t, r)
	c.d.until(5*time.Second, "it is read-only", func() (bool, string) {
		role, err := infoField(t.Context(), client, "replication", "role")
		return err == nil && role == "slave", role + errText(err)
	})
	t.Logf("read-only %.0f ms after its start", ms(time.Since(begun)))
	named := func() (bool, string) {
		now, err := c.d.status()
		return err == nil && slices.ContainsFunc(now.node(r.ID).Problems, func(p string) bool { return strings.HasPrefix(p, "boot-not-frozen") }), fmt.Sprintf("%+v %v", now, err)
	}
	c.d.until(5*time.Second, "boot-not-frozen is reported", named)
	now := c.d.waitHealthy(10 * time.Second)
	if now.epoch() != s.epoch() {
		t.Errorf("epoch %d, was %d: a replica's restart cost a failover", now.epoch(), s.epoch())
	}
	c.everywhere(now, 50)
	if ok, state := named(); !ok {
		t.Errorf("the problem was forgotten before the server was restarted the right way: %s", state)
	}
	c.killServer(r.ID)
	c.supervise(r.ID, redisd.FrozenArguments()...)
	c.d.until(5*time.Second, "the problem is gone after the right start", func() (bool, string) {
		ok, state := named()
		return !ok, state
	})
}

// TestAttachedPrimaryThatBootsWritableAndEmptyEmptiesNobody: the supervisor is as quick as can be and starts it plain.
func TestAttachedPrimaryThatBootsWritableAndEmptyEmptiesNobody(t *testing.T) {
	c, s := attachedCrew(t)
	c.fill("k", 200)
	c.everywhere(s, 200)
	for round := range roundsOr(2) {
		old := s.primary()
		c.killServer(old)
		c.supervise(old)
		end := time.Now().Add(2 * time.Second)
		for time.Now().Before(end) {
			for _, n := range s.nodes() {
				if n.ID == old {
					continue
				}
				if size, err := direct(t, n).DBSize(t.Context()).Result(); err == nil && size < 200 {
					t.Fatalf("round %d: %s holds %d keys after %s restarted empty and writable", round+1, n.ID, size, old)
				}
			}
			wait(20 * time.Millisecond)
		}
		s = c.d.waitHealthy(10 * time.Second)
		if s.primary() == old {
			t.Errorf("round %d: the emptied %s leads", round+1, old)
		}
		c.everywhere(s, 200)
	}
}
