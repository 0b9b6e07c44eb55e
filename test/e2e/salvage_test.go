// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// salvageList is the documented contract of `redoubt salvage list --json`, as far as the tests use it.
type salvageList struct {
	Files []struct {
		ID       string `json:"id"`
		Node     string `json:"node"`
		Member   string `json:"member"`
		Epoch    uint64 `json:"epoch"`
		From     int64  `json:"from"`
		To       int64  `json:"to"`
		End      int64  `json:"end"`
		Bytes    int64  `json:"bytes"`
		Commands int64  `json:"commands"`
		Replayed *struct {
			Sent   int `json:"sent"`
			Failed int `json:"failed"`
		} `json:"replayed"`
	} `json:"files"`
}

func (d *deployment) salvaged() (l salvageList, err error) {
	out, err := d.run("salvage", "list", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &l)
	}
	return l, err
}

// awaitSalvage waits until that many files are reported.
func (d *deployment) awaitSalvage(n int) (l salvageList) {
	d.t.Helper()
	d.until(15*time.Second, fmt.Sprintf("%d salvage files are listed", n), func() (bool, string) {
		var err error
		l, err = d.salvaged()
		return err == nil && len(l.Files) == n, fmt.Sprintf("%+v %v", l, err)
	})
	return l
}

// leaveBehind makes the primary acknowledge writes that no replica gets, and fails over to a replica while the process of
// the old primary lives. It returns who was the primary.
func leaveBehind(t *testing.T, d *deployment, write func(ctx context.Context, c *redis.Client)) (old, next string) {
	t.Helper()
	s := d.waitHealthy(20 * time.Second)
	p := s.node(s.primary())
	var others []node
	for _, n := range s.nodes() {
		if n.ID != p.ID {
			others = append(others, n)
		}
	}
	direct := redis.NewClient(&redis.Options{Addr: p.Addr, Password: os.Getenv("REDISCLI_AUTH")})
	defer direct.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	written := int64(-1) // asked of the primary: what is reported lags
	d.until(5*time.Second, "the replicas have everything", func() (bool, string) {
		info, err := direct.Info(ctx, "replication").Result()
		if err == nil && written < 0 {
			written = offsets(info, "master_repl_offset:")[0]
		}
		have := offsets(info, "state=online,offset=")
		return err == nil && len(have) == len(others) && slices.Min(have) >= written, fmt.Sprint(info, err)
	})
	for _, n := range others {
		signal(t, n.PID, syscall.SIGSTOP)
		t.Cleanup(func() { _ = syscall.Kill(n.PID, syscall.SIGCONT) })
	}
	if err := direct.ClientKillByFilter(ctx, "TYPE", "replica").Err(); err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), MaxRetries: -1, Password: os.Getenv("REDISCLI_AUTH")})
	defer c.Close()
	write(ctx, c)
	failed := make(chan error, 1)
	go func() {
		_, err := d.run("failover", "--to", others[0].ID, "--accept-data-loss", "--yes")
		failed <- err
	}()
	d.until(20*time.Second, "the old primary is fenced", func() (bool, string) {
		now, err := d.status()
		return err == nil && now.phase() == "fencing" && now.node(p.ID).Role == "replica", fmt.Sprint(now, err)
	})
	for _, n := range others {
		signal(t, n.PID, syscall.SIGCONT)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	after := d.waitHealthy(20 * time.Second)
	if after.primary() == p.ID {
		t.Fatalf("the old primary serves again: %+v", after)
	}
	if now := after.node(p.ID); now.PID != p.PID {
		t.Fatalf("the old primary's process was %d, is %d: it should have lived", p.PID, now.PID)
	}
	return p.ID, after.primary()
}

// offsets returns the numbers that follow each appearance of a word.
func offsets(info, word string) (all []int64) {
	for _, rest := range strings.Split(info, word)[1:] {
		n, _ := strconv.ParseInt(rest[:strings.IndexAny(rest, ",\r")], 10, 64)
		all = append(all, n)
	}
	return all
}

func TestDiscardedWritesAreKeptShownAndReplayed(t *testing.T) {
	d := up(t, "--durability", "async", "--replicas", "2")
	ctx := t.Context()
	c := d.client(0)
	if err := c.Set(ctx, "both", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	old, _ := leaveBehind(t, d, func(ctx context.Context, c *redis.Client) {
		for _, cmd := range [][]any{
			{"SET", "lost", "precious"}, {"SET", "both", "older"}, {"RPUSH", "queue", "a", "b"}, {"INCR", "counter"},
			{"SELECT", "3"}, {"HSET", "elsewhere", "f", "v"},
		} {
			if err := c.Do(ctx, cmd...).Err(); err != nil {
				t.Fatalf("%v: %v", cmd, err)
			}
		}
	})

	f := d.awaitSalvage(1).Files[0]
	if f.Node != old || f.Member != old || f.Commands != 5 || f.To != f.End || f.Bytes != f.End-f.From {
		t.Fatalf("%s left behind %+v", old, f)
	}
	if files, _ := filepath.Glob(filepath.Join(d.dir, "member-*", "data", "salvage", f.ID+".salvage")); len(files) != 1 {
		t.Fatalf("files: %v", files)
	}
	d.until(10*time.Second, "the history tells what was lost", func() (bool, string) {
		out, err := d.run("history")
		return err == nil && strings.Contains(out, "salvage") && strings.Contains(out, fmt.Sprintf("5 commands (%d bytes)", f.Bytes)) && strings.Contains(out, f.ID), out
	})
	if got, err := c.Exists(ctx, "lost", "queue", "counter").Result(); err != nil || got != 0 {
		t.Fatalf("the discarded writes are there: %d, %v", got, err)
	}
	if err := c.Set(ctx, "both", "newer", 0).Err(); err != nil {
		t.Fatal(err)
	}

	out, err := d.run("salvage", "show", f.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("salvage show:\n%s", out)
	for _, want := range []string{"SET lost precious", "RPUSH queue a b", "HSET elsewhere f v", "newer", "(nothing)"} {
		if !strings.Contains(out, want) {
			t.Errorf("show does not say %q:\n%s", want, out)
		}
	}
	if out, err = d.run("salvage", "replay", f.ID, "--dry-run", "--key", "lost"); err != nil || !strings.Contains(out, "SET lost precious") || strings.Contains(out, "queue") {
		t.Fatalf("dry run: %v\n%s", err, out)
	}
	if n, _ := c.Exists(ctx, "lost").Result(); n != 0 {
		t.Fatal("a dry run sent something")
	}

	if out, err = d.run("salvage", "replay", f.ID, "--key", "lost", "--key", "queue", "--key", "elsewhere", "--yes"); err != nil || !strings.Contains(out, "3 commands were sent") {
		t.Fatalf("replay: %v\n%s", err, out)
	}
	other := redis.NewClient(&redis.Options{Addr: d.proxyAddr(1), DB: 3})
	defer other.Close()
	if v := c.Get(ctx, "lost").Val(); v != "precious" {
		t.Errorf("lost is %q", v)
	}
	if v := c.LRange(ctx, "queue", 0, -1).Val(); strings.Join(v, " ") != "a b" {
		t.Errorf("queue is %q", v)
	}
	if v := other.HGet(ctx, "elsewhere", "f").Val(); v != "v" {
		t.Errorf("elsewhere is %q", v)
	}
	if v := c.Get(ctx, "both").Val(); v != "newer" {
		t.Errorf("a key that was not chosen is %q", v)
	}
	if n, _ := c.Exists(ctx, "counter").Result(); n != 0 {
		t.Error("a key that was not chosen is there")
	}
	d.until(5*time.Second, "the replay is noted", func() (bool, string) {
		l, err := d.salvaged()
		return err == nil && l.Files[0].Replayed != nil && l.Files[0].Replayed.Sent == 3 && l.Files[0].Replayed.Failed == 0, fmt.Sprintf("%+v %v", l, err)
	})
}

func TestWhatAKilledPrimaryWroteIsKeptFromItsAppendOnlyFile(t *testing.T) {
	d := up(t, "--durability", "async", "--replicas", "1")
	s := d.waitHealthy(20 * time.Second)
	ctx := t.Context()
	if err := d.client(0).Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	old := s.node(s.primary())
	signal(t, old.PID, syscall.SIGKILL)
	d.until(20*time.Second, "another node serves", func() (bool, string) {
		now, err := d.status()
		return err == nil && now.healthy() && now.primary() != old.ID, fmt.Sprint(now, err)
	})
	f := d.awaitSalvage(1).Files[0]
	if f.Node != old.ID || !strings.HasSuffix(f.ID, "-aof") || f.Commands < 1 {
		t.Fatalf("kept: %+v", f)
	}
	out, err := d.run("salvage", "show", f.ID)
	if err != nil || !strings.Contains(strings.ToUpper(out), "SET K V") {
		t.Fatalf("show: %v\n%s", err, out)
	}
	if out, err := d.run("history"); err != nil || !strings.Contains(out, "its memory is gone") {
		t.Fatalf("history: %v\n%s", err, out)
	}
}

func TestDiscardedWritesAreReadWithThePasswordOnly(t *testing.T) {
	const password = "open-sesame"
	t.Setenv("REDISCLI_AUTH", password)
	c := newCrew(t)
	c.extra = "    durability: async\n    password: " + password + "\n"
	for i := 1; i <= 3; i++ {
		c.start(fmt.Sprintf("n%d", i), "")
	}
	leaveBehind(t, c.d, func(ctx context.Context, r *redis.Client) {
		if err := r.Set(ctx, "lost", "precious", 0).Err(); err != nil {
			t.Fatal(err)
		}
	})
	f := c.d.awaitSalvage(1).Files[0]
	if out, err := c.d.run("salvage", "replay", f.ID, "--yes"); err != nil || !strings.Contains(strings.ToUpper(out), "SET LOST PRECIOUS: OK") {
		t.Fatalf("replay: %v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(c.d.dir, "*", "data", "salvage", "*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("the file and the note about its replay: %v, %v", files, err)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil || strings.Contains(string(text), password) {
			t.Fatalf("%s: %v, or a password in it", path, err)
		}
	}
	t.Setenv("REDISCLI_AUTH", "wrong")
	if out, err := c.d.run("salvage", "show", f.ID); err == nil || strings.Contains(out, "precious") {
		t.Fatalf("shown without the password:\n%s", out)
	}
}
