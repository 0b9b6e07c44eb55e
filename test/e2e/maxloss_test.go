// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestMaxLossIsSetWhileTheShardRuns stops both replicas of an asynchronous deployment: without the dial its primary goes on
// alone; with it writes stop within the bound, and what they had acknowledged is no older.
func TestMaxLossIsSetWhileTheShardRuns(t *testing.T) { maxLossIsSet(t, up(t, "--durability", "async")) }

func TestMaxLossIsSetWhileAClusterRuns(t *testing.T) {
	maxLossIsSet(t, up(t, "--mode", "cluster", "--shards", "1", "--replicas", "2", "--durability", "async"))
}

// maxLossIsSet is the test of one kind of deployment.
func maxLossIsSet(t *testing.T, d *deployment) {
	const bound = 300 * time.Millisecond
	s := d.waitHealthy(30 * time.Second)
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), MaxRetries: -1, ContextTimeoutEnabled: true})
	defer c.Close()
	set := func(timeout time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		return c.Set(ctx, "k", "v", 0).Err()
	}
	stopped := func(sig syscall.Signal) {
		for _, n := range s.nodes() {
			if n.ID != s.primary() {
				signal(t, n.PID, sig)
			}
		}
	}
	stopped(syscall.SIGSTOP)
	for end := time.Now().Add(2 * bound); time.Now().Before(end); wait(5 * time.Millisecond) {
		if err := set(time.Second); err != nil {
			t.Fatal("without a dial: ", err)
		}
	}
	if out, err := d.run("set", "max-loss.time="+bound.String(), "max-loss.bytes=10mb"); err != nil || !strings.Contains(out, "300ms and 10485760 bytes") {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := d.run("status"); err != nil || !strings.Contains(out, "max-loss 300ms") {
		t.Errorf("%v\n%s", err, out)
	}
	begun, last := time.Now(), time.Now()
	for set(time.Second) == nil {
		if last = time.Now(); last.Sub(begun) > 5*time.Second {
			t.Fatal("writes go on although no replica takes them")
		}
	}
	if took := last.Sub(begun); took > bound {
		t.Errorf("writes were acknowledged for %s, the bound is %s", took, bound)
	}
	if v, err := c.Get(t.Context(), "k").Result(); err != nil || v != "v" {
		t.Errorf("a read: %q, %v", v, err)
	}
	stopped(syscall.SIGCONT)
	d.until(10*time.Second, "writes go on", func() (bool, string) { err := set(time.Second); return err == nil, fmt.Sprint(err) })
	if _, err := d.run("set", "max-loss.time=1ms"); err == nil || !strings.Contains(err.Error(), "raise it") {
		t.Errorf("a dial below what a replica needs: %v", err)
	}
	if errors.Is(set(time.Second), context.DeadlineExceeded) {
		t.Error("a refused setting was applied")
	}
}
