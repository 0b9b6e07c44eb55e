// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/coord/memstore"
	"redoubt/internal/looptest"
	"redoubt/internal/topo"
)

// TestAReportIsDecodedOnceAndAnewWhenItChanged: the log tells how often one that is not usable was decoded.
func TestAReportIsDecodedOnceAndAnewWhenItChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := looptest.NewClock()
		store := memstore.New(clock, "m").Member("m")
		lease, err := store.Campaign(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		c := &Controller{o: Options{Store: store, Clock: clock, Log: slog.New(slog.NewTextHandler(&log, nil))}}
		office := &tenure{Controller: c, lease: lease, reports: map[string]report{}, seen: map[topo.NodeID]arrival{}}
		said := func(body string) {
			t.Helper()
			if err := store.Send(t.Context(), topo.BeatNode+"n1", []byte(body), time.Second); err != nil {
				t.Fatal(err)
			}
		}
		look := func() (keys int64, there bool) {
			t.Helper()
			for range 3 {
				s, err := office.gather(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				seen, ok := s.Sightings["n1"]
				keys, there = seen.Keys, ok
			}
			return keys, there
		}
		said("no report")
		if _, there := look(); there || bytes.Count(log.Bytes(), []byte("not usable")) != 1 {
			t.Fatalf("a report that is not usable: seen %v, log:\n%s", there, log.String())
		}
		for _, body := range []string{`{"keys":1,"seq":1}`, `{"keys":2,"seq":2}`} {
			said(body)
			if keys, there := look(); !there || keys != int64(body[8]-'0') {
				t.Fatalf("%s: seen %v with %d keys", body, there, keys)
			}
		}
		looptest.Pass(time.Second)
		if _, there := look(); there || len(office.reports) != 0 {
			t.Fatalf("a report that expired: seen %v, kept %v", there, office.reports)
		}
	})
}
