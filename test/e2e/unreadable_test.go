// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// punch leaves in a node's append-only file what a failed write on a full disk does: zero bytes, and good commands behind.
func (c *crew) punch(id string) {
	c.t.Helper()
	files, _ := filepath.Glob(filepath.Join(c.d.dir, id, "data", "redis", "appendonlydir", "*.incr.aof"))
	if len(files) == 0 {
		files, _ = filepath.Glob(filepath.Join(c.d.dir, id, "data", "redis", "*.aof"))
	}
	if len(files) == 0 {
		c.t.Fatalf("%s has no append-only file", id)
	}
	f, err := os.OpenFile(files[len(files)-1], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strings.Repeat("\x00", 72) + "*2\r\n$4\r\nINCR\r\n$1\r\nx\r\n"); err != nil {
		c.t.Fatal(err)
	}
}

// aside is where a node's unreadable append-only file is, as the status says.
func (c *crew) aside(id string) string {
	c.t.Helper()
	c.d.awaitProblem(id, "aof-aside", true)
	s, err := c.d.status()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range s.node(id).Problems {
		if _, rest, ok := strings.Cut(p, "lies at "); ok {
			path, _, _ := strings.Cut(rest, ";")
			return path
		}
	}
	c.t.Fatalf("no problem of %s names a file: %v", id, s.node(id).Problems)
	return ""
}

// TestAnAppendOnlyFileThatCannotBeReadDoesNotKeepANodeAway: first a replica's while the primary serves, then one when
// everything is stopped.
func TestAnAppendOnlyFileThatCannotBeReadDoesNotKeepANodeAway(t *testing.T) {
	c := managedCrew(t, 3)
	d := c.d
	s := d.waitHealthy(10 * time.Second)
	c.fill("before", 100)
	c.everywhere(s, 100)
	r := replicaOf(s)
	c.punch(r.ID)
	begun := time.Now()
	signal(t, s.node(r.ID).PID, syscall.SIGKILL)
	path := c.aside(r.ID)
	d.sameEpoch(s)
	t.Logf("enrolled again after %.0f ms", ms(time.Since(begun)))
	if _, err := os.Stat(path); err != nil || !strings.Contains(path, ".unreadable-") {
		t.Errorf("the old file is not at %q: %v", path, err)
	}
	c.everywhere(s, 100)
	if log := c.log(r.ID); strings.Count(log, "kind=aof-unreadable")+strings.Count(log, `"kind":"aof-unreadable"`) != 1 || !strings.Contains(log, "Bad file format") {
		t.Errorf("the log of %s does not say once what happened", r.ID)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	d.awaitProblem(r.ID, "aof-aside", false)

	acked := c.writeUntilDead(0)
	c.punch(r.ID)
	begun = time.Now()
	for i := 1; i <= 3; i++ {
		c.start(fmt.Sprintf("n%d", i), "")
	}
	now := d.waitHealthy(60 * time.Second)
	t.Logf("after a stop of everything: enrolled after %.0f ms, primary %s (was %s), %d keys acknowledged", ms(time.Since(begun)), now.primary(), s.primary(), acked)
	c.aside(r.ID)
	c.requireKeys(acked)
}
