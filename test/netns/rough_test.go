// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestARoughLine delays, loses, doubles and turns round frames, of every size, and is smooth again afterwards.
func TestARoughLine(t *testing.T) {
	n := hosts(t, 2)
	listen(t, n, 2)
	// carry writes a long value from host 1 to host 2 and reads it; the time is that of the connection alone.
	carry := func(within time.Duration) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		var took time.Duration
		c := redis.NewClient(&redis.Options{MaxRetries: -1, DialerRetries: 1, ReadTimeout: -1, WriteTimeout: -1, ContextTimeoutEnabled: true,
			Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
				begun := time.Now()
				conn, err := n.Dial(ctx, 1, network, n.Addr(2)+":7000")
				took = time.Since(begun)
				return conn, err
			}})
		defer c.Close()
		value := bytes.Repeat([]byte("0123456789"), 50_000)
		if err := c.Set(ctx, "k", value, 0).Err(); err != nil {
			return took, err
		}
		got, err := c.Get(ctx, "k").Bytes()
		if err == nil && !bytes.Equal(got, value) {
			t.Errorf("%d bytes came back that are not what was sent", len(got))
		}
		return took, err
	}
	for _, c := range []struct {
		name string
		how  Rough
		slow time.Duration
	}{
		{"as it comes", Rough{}, 0},
		{"late", Rough{Delay: 40 * time.Millisecond, Jitter: 5 * time.Millisecond}, 80 * time.Millisecond},
		{"out of order, with losses", Rough{Late: 0.1, LateBy: 3 * time.Millisecond, Lose: 0.02, Twice: 0.05}, 0},
	} {
		smooth, err := n.Roughen(2, c.how)
		if err != nil {
			t.Skipf("no packet sockets or devices here: %v", err)
		}
		took, err := carry(20 * time.Second)
		if err != nil || took < c.slow {
			t.Errorf("%s: connected after %s, want %s at least (%v)", c.name, took, c.slow, err)
		}
		if err := smooth(); err != nil {
			t.Fatal(err)
		}
	}
	smooth, err := n.Roughen(2, Rough{Lose: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := carry(300 * time.Millisecond); err == nil {
		t.Error("a line that loses everything let something through")
	}
	if err := smooth(); err != nil {
		t.Fatal(err)
	}
	if _, err := carry(20 * time.Second); err != nil {
		t.Errorf("after it was made smooth: %v", err)
	}
}
