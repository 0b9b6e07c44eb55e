// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// aofPart is a file of a seat's append-only file: the newest increment, or before Redis 7.0 the one file.
func aofPart(t *testing.T, n *Node) string {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(n.managed.o.Dir, "appendonlydir", "*.incr.aof"))
	if n.managed.version < 700 {
		files, _ = filepath.Glob(filepath.Join(n.managed.o.Dir, "*.aof"))
	}
	if len(files) == 0 {
		t.Fatal("the server has no append-only file")
	}
	return files[len(files)-1]
}

// punch leaves what a failed write on a full disk does: zero bytes, and good commands behind them.
func punch(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(strings.Repeat("\x00", 72) + "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n")
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func kill(t *testing.T, n *Node) {
	t.Helper()
	if err := n.Kill(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
}

func startAgain(t *testing.T, n *Node) {
	t.Helper()
	if err := n.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
}

func problem(o redis.Observation, name string) string {
	for _, p := range o.Problems {
		if strings.HasPrefix(p, name+": ") {
			return p
		}
	}
	return ""
}

// unreadable starts a seat whose append-only file was spoilt, and sees that it ends and says why.
func unreadable(t *testing.T, n *Node, words string) redis.Observation {
	t.Helper()
	startAgain(t, n)
	o := see(t, n, "the end of a server that cannot read its file", func(o redis.Observation) bool {
		return o.Health == topo.HealthExited && strings.Contains(o.Detail, "with status 1")
	})
	if o.Unreadable != n.managed.aofPath() || !strings.Contains(o.Detail, words) || !strings.Contains(problem(o, "server-ended"), words) || !strings.Contains(problem(o, "aof-unreadable"), o.Unreadable) {
		t.Fatalf("it ended as %+v", o)
	}
	return o
}

func TestAnUnreadableAppendOnlyFileIsSetAside(t *testing.T) {
	t.Parallel()
	n := open(t, keepsAll)
	promote(t, n)
	c := client(t, n.addr, "")
	must(t, c, "SET", "k", "v")
	must(t, c, "SAVE") // a snapshot is there, too, and must not come back in its place
	o := see(t, n, "the primary", isUp)
	if _, err := n.SetAside(t.Context()); !errors.Is(err, redis.ErrRefused) || o.Unreadable != "" {
		t.Fatalf("the data of a running server: %v, %+v", err, o)
	}
	kill(t, n)
	if _, err := n.SetAside(t.Context()); !errors.Is(err, redis.ErrRefused) {
		t.Fatalf("sound data: %v", err)
	}
	punch(t, aofPart(t, n))
	old := unreadable(t, n, "Bad file format").Unreadable
	unreadable(t, n, "Bad file format") // another start changes nothing
	to, err := n.SetAside(t.Context())
	if err != nil || !strings.HasPrefix(to, old+asideMark) {
		t.Fatalf("set aside as %q: %v", to, err)
	}
	if _, err := os.Stat(to); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second start has kept no more than the first
		startAgain(t, n)
		o = see(t, n, "the empty server", isUp)
		if !o.Frozen || o.Keys != 0 || o.Kept || !strings.Contains(problem(o, "aof-aside"), to) {
			t.Fatalf("started as %+v", o)
		}
		kill(t, n)
	}
	startAgain(t, n)
	p := primary(t, nil)
	fill(t, client(t, p.addr, ""), 10)
	follow(t, n, p)
	see(t, n, "the end of the rewrite", func(o redis.Observation) bool { return isUp(o) && !o.AOFBusy && o.Keys == 10 })
	kill(t, n)
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	startAgain(t, n)
	if o := see(t, n, "the synced server", func(o redis.Observation) bool { return isUp(o) && problem(o, "aof-aside") == "" }); !o.Kept || o.Keys != 10 {
		t.Fatalf("after it had everything from a primary: %+v", o)
	}
}

func TestATruncatedManifestIsSetAside(t *testing.T) {
	t.Parallel()
	n := open(t, func(o *Options) { o.Persistence = PersistAOF })
	if n.managed.version < 700 {
		t.Skip("this server has no manifest")
	}
	see(t, n, "the server", isUp)
	kill(t, n)
	manifest := filepath.Join(n.managed.o.Dir, "appendonlydir", "appendonly.aof.manifest")
	for _, size := range []int64{0, 20} {
		if err := os.Truncate(manifest, size); err != nil {
			t.Fatal(err)
		}
		unreadable(t, n, "FATAL AOF MANIFEST FILE ERROR")
		if _, err := n.SetAside(t.Context()); err != nil {
			t.Fatal(err)
		}
		startAgain(t, n)
		see(t, n, "the empty server", isUp)
		kill(t, n)
	}
}

func TestOnlyTwoUnreadableFilesAreKept(t *testing.T) {
	t.Parallel()
	n := open(t, func(o *Options) { o.Persistence = PersistAOF })
	var kept []string
	for range 4 {
		see(t, n, "the server", isUp)
		kill(t, n)
		punch(t, aofPart(t, n))
		unreadable(t, n, "Bad file format")
		to, err := n.SetAside(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, to)
		startAgain(t, n)
	}
	if got := n.managed.asides(); !slices.Equal(got, kept[2:]) {
		t.Fatalf("kept are %v, set aside were %v", got, kept)
	}
}

// TestAWriteThatFailedHalfWayIsFollowedByARewrite fills a real disk under a primary whose append-only file a full sync began.
func TestAWriteThatFailedHalfWayIsFollowedByARewrite(t *testing.T) {
	t.Parallel()
	serverBinary(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("a small disk needs root: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	n := open(t, func(o *Options) { o.Persistence, o.Dir = PersistAOF, dir })
	former := primary(t, nil)
	fill(t, client(t, former.addr, ""), 10)
	follow(t, n, former)
	see(t, n, "the file that a full sync begins", func(o redis.Observation) bool { return isUp(o) && o.Keys == 10 && !o.AOFBusy })
	if err := n.Freeze(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	promote(t, n)
	c := client(t, n.addr, "")
	must(t, c, "SET", "a", "block that has space left")
	fillDisk(t, filepath.Join(dir, "filler"))
	value := strings.Repeat("v", 100)
	for i := 0; run(t, c, "SET", fmt.Sprint("y", i), value).err() == nil; i++ {
		if i > 100000 {
			t.Fatal("the disk is never full")
		}
	}
	see(t, n, "the full disk", func(o redis.Observation) bool {
		return problem(o, "disk-full") != "" && problem(o, "aof-suspect") == ""
	})
	part := aofPart(t, n)
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	see(t, n, "the suspicion", func(o redis.Observation) bool {
		return problem(o, "disk-full") == "" && problem(o, "aof-suspect") != ""
	})
	must(t, c, "SET", "behind", "the hole")
	if b, err := os.ReadFile(part); err == nil {
		t.Logf("%d zero bytes in %s", strings.Count(string(b), "\x00"), filepath.Base(part))
	}
	if err := n.Configure(within(t, time.Second), redis.Settings{}); err != nil {
		t.Fatal(err)
	}
	keys := see(t, n, "the end of the suspicion", func(o redis.Observation) bool { return isUp(o) && problem(o, "aof-suspect") == "" }).Keys
	if now := aofPart(t, n); n.managed.version >= 700 && now == part {
		t.Fatalf("%s is still the append-only file", part)
	}
	kill(t, n)
	startAgain(t, n)
	if o := see(t, n, "the next process", isUp); o.Keys != keys || !o.Kept {
		t.Fatalf("%d keys were there, all in the new file; after the restart %+v", keys, o)
	}
}

// fillDisk writes until there is no space for another byte.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 64<<10); len(b) > 0; {
		if _, err := f.Write(b); errors.Is(err, unix.ENOSPC) {
			b = b[:len(b)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheLogTellsANewAgentThatTheFileIsSuspect(t *testing.T) {
	t.Parallel()
	const failed, solved = "# Short write while writing to the AOF file: (nwritten=72, expected=130)", "# AOF write error looks solved, Redis can write again."
	const began, done = "* Background append only file rewriting started by pid 7", "* Background AOF rewrite finished successfully"
	for _, c := range []struct {
		lines   []string
		suspect bool
	}{
		{[]string{failed, solved}, true},
		{[]string{began, failed, solved, done}, true}, // what began before the failure may keep the hole
		{[]string{failed, solved, began, done}, false},
		{[]string{failed, solved, began, failed}, true},
		{[]string{began, done}, false},
	} {
		var w aofWatch
		for _, line := range c.lines {
			w.read(line)
		}
		w.look(info{"aof_enabled": "1", "aof_last_write_status": "ok", "aof_last_bgrewrite_status": "ok"})
		if w.suspect != c.suspect {
			t.Errorf("%q: suspect is %t", c.lines, w.suspect)
		}
	}
}

func TestARewriteThatFailsIsOrderedAgain(t *testing.T) {
	t.Parallel()
	now := info{"aof_enabled": "1", "aof_last_write_status": "ok", "aof_last_bgrewrite_status": "ok"}
	w := aofWatch{suspect: true, ordered: true}
	now["aof_rewrite_in_progress"] = "1"
	if w.look(now); !w.suspect || !w.ordered {
		t.Fatalf("while it runs: %+v", w)
	}
	now["aof_rewrite_in_progress"], now["aof_last_bgrewrite_status"] = "0", "err"
	if w.look(now); !w.suspect || w.ordered {
		t.Fatalf("after a failure: %+v", w)
	}
	now["aof_last_bgrewrite_status"] = "ok"
	if w.look(now); !w.suspect {
		t.Fatal("the status of an earlier rewrite counted")
	}
}

func TestTheReasonOfAnEndIsFound(t *testing.T) {
	t.Parallel()
	const start, ready = "7:C 1 Jan # oO0OoO0OoO0Oo Redis is starting oO0OoO0OoO0Oo", "7:S 1 Jan * Ready to accept connections"
	for _, c := range []struct {
		log        []string
		line       string
		unreadable bool
	}{
		{[]string{start, "7:S # Bad file format reading the append only file: make a backup of your AOF file, then use ./redis-check-aof --fix <filename>"}, "Bad file format", true},
		{[]string{start, "7:S # Bad file format reading the append only file appendonly.aof.1.incr.aof: make a backup"}, "Bad file format", true},
		{[]string{start, "7:S # Unexpected end of file reading the append only file. You can: 1) Make a backup"}, "Unexpected end", true},
		{[]string{start, "7:S # Unexpected end of file reading the append only file appendonly.aof.1.incr.aof. You can: 1)", "7:S # last"}, "Unexpected end", true},
		{[]string{start, "7:S # ", "*** FATAL AOF MANIFEST FILE ERROR ***", "", "7:S # Found an empty AOF manifest"}, "Found an empty AOF manifest", true},
		{[]string{start, ready, "7:S # Bad file format reading the append only file"}, "Bad file format", false},
		{[]string{start, "7:S # Can't handle RDB format version 12", "7:S # Error reading the RDB preamble of the AOF file appendonly.aof.1.base.rdb, AOF loading aborted"}, "preamble", false},
		{[]string{start, ready, "7:S # Guru Meditation: Replica was unable to write command to disk. #networking.c:1", "long report", "end of it"}, "Guru Meditation", false},
		{[]string{start, ready, "7:S # Redis is now ready to exit, bye bye..."}, "bye bye", false},
	} {
		path := filepath.Join(t.TempDir(), serverLog)
		if err := os.WriteFile(path, []byte("before\n"+strings.Join(c.log, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if e := readEnding(path, 7); !strings.Contains(e.line, c.line) || e.unreadable != c.unreadable {
			t.Errorf("%q: %+v", c.log, e)
		}
	}
}
