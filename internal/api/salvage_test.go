// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"redoubt/internal/topo"
)

// attic is what a member kept.
type attic struct {
	files []topo.Salvage
	notes map[string]topo.Replay
}

func (a *attic) List() []topo.Salvage { return a.files }

func (a *attic) Open(id string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("content of " + id)), nil
}

func (a *attic) Replayed(id string, r topo.Replay) error {
	a.notes[id] = r
	return nil
}

func TestDiscardedWritesAreListedAndReadWhereTheyLie(t *testing.T) {
	r := newRig(t)
	here := &attic{files: []topo.Salvage{{ID: "m1-5-90", Node: "m1", AtMS: 2}}, notes: map[string]topo.Replay{}}
	r.server.known()[0].Salvage, r.server.o.Password = here, "sesame"
	r.report(topo.BeatMember+"m1", topo.MemberReport{ID: "m1", APIAddr: "127.0.0.1:7001"})
	r.report(topo.BeatMember+"m2", topo.MemberReport{ID: "m2", APIAddr: "127.0.0.1:7002"})
	r.report(topo.BeatSalvage+"m1", here.files)
	r.report(topo.BeatSalvage+"m2", []topo.Salvage{{ID: "m2-4-70", Node: "m2", AtMS: 1}})
	ctx := t.Context()
	l, err := r.client.Salvaged(ctx)
	if err != nil || len(l.Files) != 2 || l.Files[0].ID != "m2-4-70" || l.Files[0].API != "127.0.0.1:7002" || l.Files[1].Member != "m1" {
		t.Fatalf("%+v, %v", l, err)
	}

	one := NewClient(r.server.Addr())
	defer one.Close()
	read := func(id, password string) (string, error) {
		var text []byte
		err := one.SalvageFile(ctx, id, password, func(body io.Reader) (err error) {
			text, err = io.ReadAll(body)
			return err
		})
		return string(text), err
	}
	if text, err := read("m1-5-90", "sesame"); err != nil || text != "content of m1-5-90" {
		t.Fatalf("%q, %v", text, err)
	}
	for what, c := range map[string]struct {
		id, password string
		status       int
		says         string
	}{
		"no password":       {"m1-5-90", "", http.StatusUnauthorized, "password"},
		"a wrong password":  {"m1-5-90", "sesam", http.StatusUnauthorized, "password"},
		"it lies elsewhere": {"m2-4-70", "sesame", http.StatusMisdirectedRequest, "127.0.0.1:7002"},
		"there is none":     {"../x", "sesame", http.StatusNotFound, "salvage list"},
	} {
		text, err := read(c.id, c.password)
		var e *Error
		if !errors.As(err, &e) || e.Status != c.status || !strings.Contains(e.Message, c.says) || text != "" {
			t.Errorf("%s: %q, %v", what, text, err)
		}
	}
	if err := one.Replayed(ctx, "m1-5-90", topo.Replay{Sent: 3}); err != nil || here.notes["m1-5-90"].Sent != 3 {
		t.Fatalf("%v, %+v", err, here.notes)
	}
	if err := one.Replayed(ctx, "m2-4-70", topo.Replay{Sent: 3}); err == nil {
		t.Fatal("a replay of a file that lies elsewhere was noted here")
	}
}

func TestAnEventIsNotedInTheTimelineOnce(t *testing.T) {
	r := newRig(t)
	e := topo.TimelineEvent{AtMS: 7, Member: "m1", Epoch: 4, Rule: "salvage", Why: "3 commands"}
	for range 2 { // the second is the repetition after an unknown outcome
		if err := r.server.known()[0].orders.Note(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for i := range int64(topo.TimelineMax) {
		if err := r.server.known()[0].orders.Note(t.Context(), topo.TimelineEvent{AtMS: 8 + i}); err != nil {
			t.Fatal(err)
		}
	}
	tl, err := r.client.History(t.Context())
	if err != nil || len(tl.Events) != topo.TimelineMax || tl.Events[0].AtMS != 8 {
		t.Fatalf("%d events, %v", len(tl.Events), err)
	}
}
