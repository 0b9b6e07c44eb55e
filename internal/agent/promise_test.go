// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"testing"

	"redoubt/internal/topo"
)

func reopen(t *testing.T, dir string) (*promise, error) {
	t.Helper()
	p, err := openPromise(dir)
	if err == nil {
		t.Cleanup(func() { p.close() })
	}
	return p, err
}

func TestPromiseIsRememberedAndNeverLowered(t *testing.T) {
	dir := t.TempDir()
	for _, e := range []topo.Epoch{0, 3, 2, 7, 8} {
		p, err := reopen(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		before := p.epoch
		if err := p.keep(e); err != nil {
			t.Fatal(err)
		}
		again, err := reopen(t, dir)
		if err != nil || again.epoch != max(before, e) {
			t.Fatalf("kept %d after %d: %d, %v", e, before, again.epoch, err)
		}
	}
}

// TestTornPromiseFallsBackToTheOneBefore: the slot that was being written is torn; nobody has heard of that promise.
func TestTornPromiseFallsBackToTheOneBefore(t *testing.T) {
	dir := t.TempDir()
	p, err := reopen(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	for e := topo.Epoch(1); e <= 5; e++ {
		if err := p.keep(e); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "promise")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newest := (1 - p.next) * slotSize
	copy(b[newest+16:], "garbage")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := reopen(t, dir)
	if err != nil || again.epoch != 4 {
		t.Fatalf("epoch %v, %v; want 4", again, err)
	}
	copy(b[(1-newest/slotSize)*slotSize+16:], "garbage")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := reopen(t, dir); err == nil {
		t.Fatal("a promise that is lost was taken for none")
	}
}
