// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
	"redoubt/test/ports"
)

// withDisk skips a test on a server that cannot confirm what is on its disk.
func withDisk(t *testing.T) {
	t.Helper()
	if _, version, err := findBinary(serverBinary(t)); err != nil || version < confirmsDisk {
		t.Skipf("needs Redis 7.4 or Valkey 8.0 (REDOUBT_TEST_SERVER): this one is %d, %v", version, err)
	}
}

func aof(o *Options) { o.Persistence = PersistAOF }

func TestAServerSaysWhetherItCanSpeakOfItsDisk(t *testing.T) {
	t.Parallel()
	n := open(t, aof)
	o := see(t, n, "an answering server", isUp)
	if _, version, _ := findBinary(serverBinary(t)); version < confirmsDisk {
		if o.Disk != topo.DiskUnable || !strings.Contains(o.NoDisk, "run Redis 7.4 or Valkey 8.0") {
			t.Fatalf("%s %q", o.Disk, o.NoDisk)
		}
		_, err := Managed(within(t, 5*time.Second), Options{Addr: ports.Addr(t), Dir: t.TempDir(), Binary: serverBinary(t), SyncAlways: true})
		if err == nil || !strings.Contains(err.Error(), "cannot confirm what is on disk: run Redis 7.4 or Valkey 8.0") {
			t.Fatal(err)
		}
		return
	}
	if o.Disk != topo.DiskAble || o.NoDisk != "" {
		t.Fatalf("%s %q", o.Disk, o.NoDisk)
	}
	none := open(t, nil)
	if o := see(t, none, "an answering server", isUp); o.Disk != topo.DiskUnable || !strings.Contains(o.NoDisk, "set node.persistence to aof") {
		t.Fatalf("%s %q", o.Disk, o.NoDisk)
	}
	c := client(t, n.addr, "")
	must(t, c, "CONFIG", "SET", "appendonly", "no")
	see(t, n, "that the file is off", func(o redis.Observation) bool { return o.Disk == topo.DiskUnable })
	if known := knowsCommand(must(t, c, "COMMAND", "INFO", "WAITAOF")); known != "" {
		t.Fatal(known)
	}
	if known := knowsCommand(must(t, c, "COMMAND", "INFO", "WAITAOF2")); known != "no" {
		t.Fatal(known)
	}
}

func TestEveryWriteIsSyncedWhileThatIsAskedFor(t *testing.T) {
	t.Parallel()
	withDisk(t)
	n := open(t, func(o *Options) { aof(o); o.Directives = map[string]string{"appendfsync": "no"} })
	see(t, n, "an answering server", isUp)
	policy := func() string {
		return must(t, client(t, n.addr, ""), "CONFIG", "GET", appendFsync).pairs()[appendFsync]
	}
	configure := func(disk bool) {
		t.Helper()
		if err := n.Configure(within(t, 2*time.Second), redis.Settings{Disk: disk}); err != nil {
			t.Fatal(err)
		}
	}
	configure(false)
	if p := policy(); p != "no" {
		t.Fatal(p)
	}
	configure(true)
	if p := policy(); p != "always" {
		t.Fatal(p)
	}
	see(t, n, "that every write is synced", func(o redis.Observation) bool { return o.Disk == topo.DiskSynced && len(o.Settings) == 0 })
	must(t, client(t, n.addr, ""), "CONFIG", "SET", appendFsync, everySecond)
	see(t, n, "a setting that lies", func(o redis.Observation) bool {
		return o.Disk == topo.DiskAble && len(o.Settings) == 1 && o.Settings[0] == "appendfsync is everysec, must be always"
	})
	configure(true)
	see(t, n, "that it is mended", func(o redis.Observation) bool { return o.Disk == topo.DiskSynced && len(o.Settings) == 0 })
	configure(false)
	if p := policy(); p != "no" {
		t.Fatalf("it was %q before, and is %q", "no", p)
	}
	must(t, client(t, n.addr, ""), "CONFIG", "SET", appendFsync, everySecond) // somebody's own wish
	configure(false)
	if p := policy(); p != everySecond {
		t.Fatal(p)
	}
}

func TestAServerMaySyncEveryWriteFromItsStart(t *testing.T) {
	t.Parallel()
	withDisk(t)
	n := open(t, func(o *Options) {
		aof(o)
		o.SyncAlways = true
		o.Directives = map[string]string{"appendfsync": everySecond}
	})
	see(t, n, "that every write is synced", func(o redis.Observation) bool { return o.Disk == topo.DiskSynced })
}

func TestABarrierReachesTheDisks(t *testing.T) {
	t.Parallel()
	withDisk(t)
	always := func(o *Options) { aof(o); o.SyncAlways = true }
	n, r := primary(t, always), open(t, always)
	follow(t, r, n)
	rule := redis.Rule{Change: 7, Acks: 1, Disk: true, Cut: true}
	held := func() bool {
		_, held, err := n.Enforce(within(t, 2*time.Second), rule)
		if err != nil {
			t.Fatal(err)
		}
		return held
	}
	soon := func(what string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !held(); {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	soon("the replica's disk does not have the barrier")
	begun := time.Now()
	for range 20 {
		rule.Change++
		soon("the replica's disk does not have the barrier")
	}
	if took := time.Since(begun); took > 5*time.Second { // a second for each, when the replica is asked before it has synced
		t.Errorf("20 barriers took %s", took)
	}
	must(t, client(t, r.addr, ""), "CONFIG", "SET", "appendonly", "no")
	rule.Change++
	for range 10 {
		if held() {
			t.Fatal("a replica without an append-only file was counted")
		}
	}
	see(t, r, "why", func(o redis.Observation) bool { return o.Disk == topo.DiskUnable })
	rule.Acks = 0
	soon("the primary's own disk does not have the barrier")
	must(t, client(t, n.addr, ""), "CONFIG", "SET", "appendonly", "no")
	rule.Change++
	if _, held, err := n.Enforce(within(t, 2*time.Second), rule); err == nil || held {
		t.Fatalf("a primary without an append-only file: held %v, %v", held, err)
	}
}

// TestAnAnswerAboutTheDiskIsTrue: what a primary and its replica say to be on disk is in their files when both are killed at
// that moment.
func TestAnAnswerAboutTheDiskIsTrue(t *testing.T) {
	t.Parallel()
	withDisk(t)
	always := func(o *Options) { aof(o); o.SyncAlways = true }
	n, r := primary(t, always), open(t, always)
	follow(t, r, n)
	c := client(t, n.addr, "")
	for end := time.Now().Add(10 * time.Second); ; {
		must(t, c, "SET", "the-key-that-is-looked-for", "1")
		run(t, c, "WAIT", "1", "1000")
		if w := must(t, c, "WAITAOF", "1", "1", "100"); w.items[0].num == 1 && w.items[1].num == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("never on both disks")
		}
	}
	for _, x := range []*Node{n, r} {
		if err := x.Kill(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		files, _ := filepath.Glob(filepath.Join(x.state, "appendonlydir", "*"))
		found := false
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(b), "the-key-that-is-looked-for")
		}
		if !found {
			t.Errorf("%s: the key is in none of %v", x.addr, files)
		}
	}
}

func TestWhyAServerCannotSpeakOfItsDisk(t *testing.T) {
	t.Parallel()
	on := func(more ...string) map[string]string {
		m := map[string]string{"appendonly": "yes", appendFsync: "always", noFsyncOnRewrite: "no"}
		for i := 0; i+1 < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	ours, theirs := &Node{managed: &managed{}}, &Node{}
	for _, c := range []struct {
		n       *Node
		cfg     map[string]string
		version string
		state   topo.DiskState
		why     string
	}{
		{ours, on(), "redis 7.4.1", topo.DiskSynced, ""},
		{theirs, on(), "valkey 8.0.0", topo.DiskSynced, ""},
		{ours, on(), "redis 8.2.0", topo.DiskSynced, ""},
		{ours, on(appendFsync, everySecond), "valkey 9.0.1", topo.DiskAble, ""},
		{ours, on(noFsyncOnRewrite, "yes"), "valkey 9.0.1", topo.DiskAble, ""},
		{ours, on(), "redis 7.0.15", topo.DiskUnable, "run Redis 7.4 or Valkey 8.0"},
		{ours, on(), "redis 7.2.6", topo.DiskUnable, "run Redis 7.4 or Valkey 8.0"},
		{theirs, on(), "valkey 7.2.8", topo.DiskUnable, "run Redis 7.4 or Valkey 8.0"},
		{theirs, on(waitsForDisk, "no"), "redis 8.0.0", topo.DiskUnable, "remove its rename-command"},
		{ours, on("appendonly", "no"), "redis 8.0.0", topo.DiskUnable, "set node.persistence to aof"},
		{theirs, on("appendonly", "no"), "redis 8.0.0", topo.DiskUnable, "set appendonly yes in its configuration file and by CONFIG SET"},
	} {
		if state, why := c.n.diskState(c.cfg, c.version); state != c.state || !strings.Contains(why, c.why) || (why == "") != (c.why == "") {
			t.Errorf("%s %v: %s %q", c.version, c.cfg, state, why)
		}
	}
}
