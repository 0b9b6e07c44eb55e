// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMigrateAPool: the servers of a twemproxy, become one shard. A key that lies where the
// pool does not look for it stays behind.
func TestMigrateAPool(t *testing.T) {
	t.Parallel()
	l := newLegacy(t)
	var servers []string
	for i := range 2 {
		addr := l.addr("127.0.0.1", 100+i)
		l.server(addr)
		servers = append(servers, fmt.Sprintf("%s:%d", addr, i+1))
	}
	file := l.pool("", servers...)
	l.fill()
	for i := range 2 { // one of the two is astray
		if _, err := ask(l.addr("127.0.0.1", 100+i), "SET", "key:7", "7"); err != nil {
			t.Fatal(err)
		}
		if _, err := ask(l.addr("127.0.0.1", 100+i), "SET", fmt.Sprint("astray:", i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	d := up(t, "--replicas", "1")
	d.waitHealthy(30 * time.Second)
	out, err := exec.Command(d.bin, "migrate", "--from", file, "--to", d.dir, "--cut-over", "--verify", "all", "--yes").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	target := client(t, d.proxyAddr(0), 0)
	for i := range adoptedKeys {
		if v, err := target.Get(t.Context(), fmt.Sprint("key:", i)).Int(); err != nil || v != i {
			t.Fatalf("key:%d is %d, %v", i, v, err)
		}
	}
	// twemproxy's own answer says which of the keys that were put there behind its back it looks for
	for i := range 2 {
		key := fmt.Sprint("astray:", i)
		seen, err := l.through("STRLEN", key)
		n, err2 := target.StrLen(t.Context(), key).Result()
		if err != nil || err2 != nil || seen != n {
			t.Errorf("%s: the pool has %v (%v), the target %d (%v)", key, seen, err, n, err2)
		}
	}
	if _, err := l.through("SET", "key:1", "late"); err == nil {
		t.Error("the pool takes writes")
	}
}

// TestMigrateWithoutTheStream: a user who may not follow the source is refused with a word about it, and with --scan everything is copied
// once more while writers wait.
func TestMigrateWithoutTheStream(t *testing.T) {
	t.Parallel()
	from := plainServer(t)
	old := client(t, from, 0)
	if _, err := ask(from, "ACL", "SETUSER", "mover", "on", ">secret", "~*", "&*", "+@all", "-psync", "-sync", "-replconf"); err != nil {
		t.Fatal(err)
	}
	keys := furnish(t, old, 200)
	d := up(t, "--replicas", "1")
	d.waitHealthy(30 * time.Second)
	url := "redis://mover:secret@" + from
	out, err := exec.Command(d.bin, "migrate", "--from", url, "--to", d.dir, "--cut-over", "--yes").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--scan") || strings.Contains(string(out), "secret") {
		t.Errorf("%v\n%s", err, out)
	}
	m := newMigration(t, url, d.dir, old, client(t, d.proxyAddr(0), 0))
	cmd, result, errs := m.command("--cut-over", "--scan", "--pause", "20s")
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, errs)
	}
	t.Logf("%s\n%s", errs, result)
	wait(300 * time.Millisecond)
	m.judge(migrated{Compared: int64(len(keys))}, keys)
	noLeftovers(t, client(t, d.proxyAddr(0), 0))
}
