// SPDX-License-Identifier: Apache-2.0

package address

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord/memstore"
)

// TestMain is also the process that holds an address, in tests: a file stands for it.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "hold-file" {
		h := &holder{dev: fileDevice(os.Args[2]), clock: clock.Real{}, out: os.Stdout}
		if err := h.run(context.Background(), os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

type fileDevice string

func (f fileDevice) Add() error { return os.WriteFile(string(f), nil, 0o600) }
func (f fileDevice) Remove() error {
	if err := os.Remove(string(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
func (fileDevice) Announce() error { return nil }

// world is three members with a face each.
type world struct {
	t       *testing.T
	dir     string
	cluster *memstore.Cluster
	ill     [4]atomic.Bool
	ends    [4]func()
	two     chan string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), cluster: memstore.New(nil, "m1", "m2", "m3"), two: make(chan string, 1)}
	for i := 1; i <= 3; i++ {
		w.start(i)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // nobody may ever see two
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if all := w.holders(); len(all) > 1 && slices.Equal(all, w.holders()) {
				select {
				case w.two <- fmt.Sprint(all):
				default:
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return w
}

func (w *world) start(i int) {
	w.t.Helper()
	id := fmt.Sprint("m", i)
	f, err := New(Options{
		Name: "d", Address: netip.MustParsePrefix("10.0.0.100/24"), Interface: "x", Member: id, Store: w.cluster.Member(id), Command: []string{os.Args[0], "hold-file", filepath.Join(w.dir, id)},
		Healthy: func() (bool, string) { return !w.ill[i].Load(), "it is ill" },
		Lease:   400 * time.Millisecond, Margin: 50 * time.Millisecond, Silence: 450 * time.Millisecond, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	w.ends[i] = func() { cancel(); <-done }
	w.t.Cleanup(w.ends[i])
}

func (w *world) holders() []string {
	files, _ := filepath.Glob(filepath.Join(w.dir, "m*"))
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	return files
}

// await waits until exactly one member holds the address, and not that one.
func (w *world) await(what, not string) (holder int) {
	w.t.Helper()
	began := time.Now()
	for {
		all := w.holders()
		select {
		case two := <-w.two:
			w.t.Fatalf("%s: %s held it at once", what, two)
		default:
		}
		if len(all) == 1 && all[0] != not {
			w.t.Logf("%s: %s after %s", what, all[0], time.Since(began).Round(time.Millisecond))
			fmt.Sscanf(strings.TrimPrefix(all[0], "m"), "%d", &holder)
			return holder
		}
		if time.Since(began) > 15*time.Second {
			w.t.Fatalf("%s: held by %v", what, all)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func TestTheAddressMovesAndIsNeverHeldTwice(t *testing.T) {
	w := newWorld(t)
	holder := w.await("at first", "")
	for _, x := range []struct {
		what     string
		do, undo func(i int)
	}{
		{"the holder is cut off", func(i int) { w.cluster.Cut(fmt.Sprint("m", i)) }, func(i int) { w.cluster.Heal(fmt.Sprint("m", i)) }},
		{"the holder is ill", func(i int) { w.ill[i].Store(true) }, func(i int) { w.ill[i].Store(false) }},
		{"the holder stops", func(i int) { w.ends[i]() }, func(i int) { w.start(i) }},
	} {
		x.do(holder)
		next := w.await(x.what, fmt.Sprint("m", holder))
		x.undo(holder)
		holder = next
	}
	w.ends[holder]() // and is back before anybody has noticed
	w.start(holder)
	w.await("a restart", "")
	w.cluster.Outage(true)
	end := time.Now().Add(5 * time.Second)
	for len(w.holders()) > 0 {
		if time.Now().After(end) {
			t.Fatalf("held without a lease by %v", w.holders())
		}
		<-time.After(5 * time.Millisecond)
	}
	w.cluster.Outage(false)
	w.await("the store is back", "")
}
