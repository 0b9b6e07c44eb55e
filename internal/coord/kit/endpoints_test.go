// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnEndpointIsUsedUntilItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := NewEndpoints("test", "p", slog.New(slog.DiscardHandler), []string{"a", "b"}, func(addr string) (string, error) { return "client of " + addr, nil })
		if err != nil {
			t.Fatal(err)
		}
		var asked atomic.Int32
		e.Probe(func(context.Context, string) error { asked.Add(1); return nil })
		a, stay := e.Current()
		if a.Addr != "a" || a.Client != "client of a" || stay.Err() != nil {
			t.Fatalf("began with %+v", a)
		}
		synctest.Wait()
		e.Failed(t.Context(), a, 1, errors.New("broken"))
		b, next := e.Current()
		if b.Addr != "b" || stay.Err() == nil || next.Err() != nil {
			t.Fatalf("after a failure %s is used; the first one's end: %v", b.Addr, stay.Err())
		}
		e.Failed(t.Context(), a, 1, errors.New("broken, told late"))
		if x, _ := e.Current(); x != b {
			t.Fatalf("a failure of %s took %s out of use", a.Addr, b.Addr)
		}
		h := e.Health()
		if h.Failures != 2 || h.Endpoints[0].Up || h.Endpoints[0].Err != "broken, told late" || !h.Endpoints[1].Up {
			t.Fatalf("health %+v", h)
		}
		begun := time.Now()
		e.Failed(t.Context(), b, 2, errors.New("broken"))
		if x, _ := e.Current(); x != a || time.Since(begun) != pauseTry {
			t.Fatalf("after both failed %s is used, after %s", x.Addr, time.Since(begun))
		}
		<-time.After(probeEvery)
		synctest.Wait()
		if n := asked.Load(); n != 4 || !e.Health().Endpoints[0].Up {
			t.Fatalf("asked %d times, %+v", n, e.Health())
		}
		closed := 0
		e.Close(func(string) { closed++ })
		if _, stay := e.Current(); closed != 2 || stay.Err() == nil {
			t.Fatalf("%d clients closed, still in use: %v", closed, stay.Err())
		}
	})
}
