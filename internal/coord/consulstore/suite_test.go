// SPDX-License-Identifier: Apache-2.0

package consulstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/consulstore"
	"redoubt/internal/coord/coordtest"
	"redoubt/internal/coord/seat"
	"redoubt/test/outside"
)

var prefixes atomic.Int64

// testLog is silent unless REDOUBT_TEST_LOG is set.
func testLog() *slog.Logger {
	var to io.Writer = io.Discard
	if os.Getenv("REDOUBT_TEST_LOG") != "" {
		to = os.Stderr
	}
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func prefix() string { return fmt.Sprintf("test/%d", prefixes.Add(1)) }

func open(t testing.TB, c *outside.Cluster, at string) *consulstore.Store {
	t.Helper()
	s, err := consulstore.Open(consulstore.Options{Endpoints: c.Endpoints, Prefix: at, Log: testLog()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// members starts a deployment of n members over Consul.
func members(t testing.TB, c *outside.Cluster, n int) *coordtest.Cluster {
	at := prefix()
	out := &coordtest.Cluster{}
	for i := range n {
		id := fmt.Sprint("m", i+1)
		s, err := seat.Open(open(t, c, at), seat.Options{ID: id, ListenAddr: "127.0.0.1:0", Log: testLog()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		out.IDs, out.Stores = append(out.IDs, id), append(out.Stores, s)
	}
	for _, s := range out.Stores {
		coordtest.Until(t, "all members know each other", func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			ms, err := s.(coord.Members).Members(ctx)
			return err == nil && len(ms) == n && s.Controller() != ""
		})
	}
	return out
}

func TestTheContractIsKeptOverConsul(t *testing.T) {
	c := outside.Consul(t, 1)
	start := func(t testing.TB, n int) *coordtest.Cluster { return members(t, c, n) }
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) { coordtest.RunSize(t, start, n) })
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func swap(t *testing.T, s *consulstore.Store, value string, old coord.Rev) coord.Rev {
	t.Helper()
	rev, err := s.Swap(within(t, 5*time.Second), "k", []byte(value), old)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// TestEndpointsThatAreLostOneByOneCostLittle: a killed, then a stopped endpoint; reads and swaps go on with what is left.
func TestEndpointsThatAreLostOneByOneCostLittle(t *testing.T) {
	c := outside.Consul(t, 3)
	s := open(t, c, prefix())
	defer s.Close()
	rev := swap(t, s, "0", 0)
	for i, lose := range []func(int){c.Kill, c.Stop} {
		lose(i)
		deadline := time.Now().Add(10 * time.Second)
		longest := time.Duration(0)
		for n, good := 0, 0; good < 20; n++ {
			began := time.Now()
			docs, err := s.Read(within(t, 2*time.Second), "k")
			longest = max(longest, time.Since(began))
			if err == nil && docs["k"].Rev < rev {
				t.Fatalf("read revision %d after %d was acknowledged", docs["k"].Rev, rev)
			}
			if err == nil {
				rev = docs["k"].Rev
				next, err := s.Swap(within(t, 2*time.Second), "k", fmt.Append(nil, n), rev)
				if err == nil {
					rev, good = next, good+1
				} else if !errors.Is(err, coord.ErrUnsure) && !errors.Is(err, coord.ErrUnavailable) && !errors.Is(err, coord.ErrConflict) {
					t.Fatal(err)
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("endpoint %d is lost and nothing goes on: %v", i, err)
			}
		}
		t.Logf("endpoint %d lost: the slowest read took %s", i, longest.Round(time.Millisecond))
		if i == 0 {
			c.Start(0)
			c.Await(0)
		} else {
			c.Continue(1)
		}
	}
	h := s.Health()
	if h.Kind != "consul" || len(h.Endpoints) != 3 || h.Reads == 0 || h.Swaps == 0 || h.Failures == 0 {
		t.Fatalf("health: %+v", h)
	}
}

// TestAWatchTellsWhatComes, through the loss of the endpoint that it asked.
func TestAWatchTellsWhatComes(t *testing.T) {
	c := outside.Consul(t, 3)
	s := open(t, c, prefix())
	defer s.Close()
	rev := swap(t, s, "0", 0)
	ctx, cancel := context.WithCancel(t.Context())
	told, done := make(chan coord.Doc, 1024), make(chan struct{})
	go func() {
		defer close(done)
		s.Follow(ctx, "k", func(d coord.Doc) { told <- d })
	}()
	defer func() { cancel(); <-done }()
	await := func(want coord.Rev) {
		t.Helper()
		timeout := time.After(15 * time.Second)
		for last := coord.Rev(0); last < want; {
			select {
			case d := <-told:
				last = d.Rev
			case <-timeout:
				t.Fatalf("revision %d was never told, only %d", want, last)
			}
		}
	}
	await(rev)
	for i := range 3 {
		rev = swap(t, s, fmt.Sprint(i), rev)
	}
	await(rev)
	c.Kill(0)
	coordtest.Until(t, "swaps go on", func() bool {
		docs, err := s.Read(within(t, 2*time.Second), "k")
		if err != nil {
			return false
		}
		next, err := s.Swap(within(t, 2*time.Second), "k", []byte("last"), docs["k"].Rev)
		rev = max(rev, next)
		return err == nil
	})
	await(rev)
}

func TestWrongAddressesAreUnavailable(t *testing.T) {
	s, err := consulstore.Open(consulstore.Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Read(within(t, 300*time.Millisecond), "k"); !errors.Is(err, coord.ErrUnavailable) {
		t.Errorf("nobody listens there: %v", err)
	}
	if _, err := s.Swap(within(t, 300*time.Millisecond), "k", nil, 0); !errors.Is(err, coord.ErrUnavailable) {
		t.Errorf("a swap that was surely not sent: %v", err)
	}
}
