// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/config"
	"redoubt/internal/coord"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/front"
	"redoubt/internal/proxy"
)

func hatchPair(t *testing.T) (old, young *hatch) {
	t.Helper()
	old, f, err := newHatch()
	if err != nil {
		t.Fatal(err)
	}
	if young, err = hatchOf(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { old.close(); young.close() })
	return old, young
}

func TestFramesArriveWholeWithTheirFiles(t *testing.T) {
	old, young := hatchPair(t)
	big := bytes.Repeat([]byte("x"), 600<<10)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 50 {
			r, w, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = w.WriteString("hello")
			_ = w.Close()
			fd, err := fdOf(r)
			if err == nil && i%2 == 0 {
				err = old.send(whatClient, i, fd)
			} else if err == nil {
				err = old.send(whatScript, big)
			}
			if err != nil {
				t.Error(err)
			}
			_ = r.Close()
		}
		old.close()
	})
	for i := range 50 {
		f, err := young.receive()
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			var body []byte
			if f.decode(&body) != nil || len(body) != len(big) || len(f.files) != 0 {
				t.Fatalf("frame %d has %d bytes, %d files", i, len(body), len(f.files))
			}
			continue
		}
		var n int
		if f.decode(&n) != nil || n != i || len(f.files) != 1 {
			t.Fatalf("frame %d: %s with %d files", i, f.body, len(f.files))
		}
		file := os.NewFile(uintptr(f.files[0]), "pipe")
		if b, err := io.ReadAll(file); err != nil || string(b) != "hello" {
			t.Fatalf("frame %d brought a file with %q %v", i, b, err)
		}
		_ = file.Close()
	}
	if _, err := young.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	wg.Wait()
}

func TestAHeirRefusesWhatItDoesNotKnow(t *testing.T) {
	c := config.Default()
	c.Member.ID, c.Member.Dir = "n1", "/d"
	c.Deployments = []config.Deployment{{Mode: "single"}}
	good := offer{Format: hatchFormat, Record: proxy.RecordFormat, Member: "n1", Dir: "/d"}
	shards := offer{Format: hatchShards, Record: proxy.RecordFormat, Member: "n1", Dir: "/d", Front: front.RecordFormat}
	for mode, o := range map[string]offer{"single": good, "ring": shards, "cluster": shards} {
		of := c
		of.Deployments = []config.Deployment{{Mode: mode}}
		if err := (&Predecessor{offer: o}).check(of); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
		if err := (&Predecessor{offer: offer{Format: hatchFormat + hatchShards - o.Format, Record: o.Record, Member: "n1", Dir: "/d", Front: front.RecordFormat - o.Front}}).check(of); err == nil {
			t.Errorf("%s: what is handed over of another mode is taken", mode)
		}
	}
	for want, change := range map[string]func(*offer){
		"hands over in format 2": func(o *offer) { o.Format = 2 },
		"records of format 0":    func(o *offer) { o.Record = 0 },
		"it is member n2":        func(o *offer) { o.Member = "n2" },
		"in /e":                  func(o *offer) { o.Dir = "/e" },
	} {
		o := good
		change(&o)
		old, young := hatchPair(t)
		_, err := (&Predecessor{hatch: young, offer: o}).take(Options{Config: c})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		var r ready
		if f, err := old.receive(); err != nil || f.what != whatRefuse || f.decode(&r) != nil || !strings.Contains(r.Why, want) {
			t.Errorf("%s: the old process hears %c %+v %v", want, f.what, r, err)
		}
	}
}

// TestTheOldProcessReadsThroughTheNewOne: reads and watches go on when the store is closed and another one takes its place.
func TestTheOldProcessReadsThroughTheNewOne(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	world := memstore.New(clock.Real{}, "a")
	store := world.Member("a")
	defer store.Close()
	rev, err := store.Swap(ctx, "k", []byte("one"), 0)
	if err != nil {
		t.Fatal(err)
	}
	src := newSource(store)
	pushed := src.Watch(ctx, "k")
	if doc := <-pushed; string(doc.Value) != "one" {
		t.Errorf("watch: %q", doc.Value)
	}
	src.set(nil)
	if _, err := src.Get(ctx, "k"); !errors.Is(err, coord.ErrUnavailable) {
		t.Errorf("without a store: %v", err)
	}
	old, young := hatchPair(t)
	r := newRelay(old)
	var wg sync.WaitGroup
	wg.Go(func() { // the old process's listener
		for {
			f, err := old.receive()
			if err != nil {
				return
			}
			r.answered(f)
		}
	})
	wg.Go(func() { // the new process
		for {
			f, err := young.receive()
			var q question
			if err != nil || f.decode(&q) != nil {
				return
			}
			_ = young.send(whatAnswer, (&member{store: store}).answerFor(ctx, q))
		}
	})
	src.set(r)
	if doc, err := src.Get(ctx, "k"); err != nil || string(doc.Value) != "one" || doc.Rev != rev {
		t.Errorf("through the new process: %+v %v", doc, err)
	}
	if _, err := src.Get(ctx, "none"); !errors.Is(err, coord.ErrUnavailable) {
		t.Errorf("no such document: %v", err)
	}
	if _, err := src.Swap(ctx, "k", nil, rev); !errors.Is(err, coord.ErrUnavailable) {
		t.Errorf("a swap by the old process: %v", err)
	}
	src.set(store)
	if _, err := store.Swap(ctx, "k", []byte("two"), rev); err != nil {
		t.Fatal(err)
	}
	for doc := range pushed {
		if string(doc.Value) == "two" {
			break
		}
	}
	old.close()
	young.close()
	wg.Wait()
}

func TestSystemdIsTold(t *testing.T) {
	path := t.TempDir() + "/notify"
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	notify(slog.New(slog.DiscardHandler), "MAINPID=7")
	_ = l.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 100)
	if n, err := l.Read(b); err != nil || string(b[:n]) != "MAINPID=7" {
		t.Errorf("%q %v", b[:n], err)
	}
}
