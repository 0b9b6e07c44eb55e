// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// direct returns a client of one node's server, beside Redoubt.
func direct(t *testing.T, n node) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: n.Addr, MaxRetries: -1})
	t.Cleanup(func() { c.Close() })
	return c
}

// infoField reads one field of INFO.
func infoField(ctx context.Context, c *redis.Client, section, field string) (string, error) {
	text, err := c.Info(ctx, section).Result()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			return v, nil
		}
	}
	return "", fmt.Errorf("INFO %s has no %s", section, field)
}

// fullSyncs counts the full resyncs that all present servers have served.
func (d *deployment) fullSyncs() int {
	d.t.Helper()
	s := d.waitHealthy(30 * time.Second)
	sum := 0
	for _, n := range s.nodes() {
		v, err := infoField(d.t.Context(), direct(d.t, n), "stats", "sync_full")
		if err != nil {
			d.t.Fatal(err)
		}
		c, _ := strconv.Atoi(v)
		sum += c
	}
	return sum
}

func (d *deployment) client(i int) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(i)})
	d.t.Cleanup(func() { c.Close() })
	return c
}

func TestColdStartAfterEverythingWasKilledAtOnce(t *testing.T) {
	d := up(t)
	s := d.waitHealthy(30 * time.Second)
	c := d.client(0)
	acked := 0
	ctx := t.Context()
	end := time.Now().Add(time.Second)
	for i := 0; time.Now().Before(end); i++ {
		if err := c.Set(ctx, fmt.Sprintf("cold:%d", i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
		acked = i + 1
	}
	killWritten(t, s.nodes())
	begun := time.Now()
	d.start()
	after := d.waitHealthy(30 * time.Second)
	t.Logf("%d keys written; all six processes killed; everything enrolled again after %s; epoch %d, before %d", acked, time.Since(begun).Round(time.Millisecond), after.epoch(), s.epoch())
	if after.epoch() < s.epoch() {
		t.Errorf("epoch went back from %d to %d", s.epoch(), after.epoch())
	}
	primaries := 0
	for _, n := range after.nodes() {
		if n.Role == "primary" {
			primaries++
		}
	}
	if primaries != 1 {
		t.Errorf("%d primaries", primaries)
	}
	size, err := d.client(1).DBSize(ctx).Result()
	if err != nil {
		t.Fatal(err)
	}
	if int(size) < acked { // kill -9 loses nothing of an append-only file that reached write()
		t.Errorf("%d of %d acknowledged keys are left", size, acked)
	}
}

// A member that dies while `up` looks at it is found running, and is started all the same.
func TestUpStartsAMemberThatWasStillDying(t *testing.T) {
	d := up(t)
	n := d.waitHealthy(30 * time.Second).nodes()[0]
	signal(t, n.AgentPID, syscall.SIGSTOP)
	said, says, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	again := exec.Command(d.bin, "up", "--dir", d.dir)
	again.Stderr = says
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	says.Close()
	lines := bufio.NewScanner(said)
	killed := false
	for lines.Scan() {
		t.Log(lines.Text())
		if !killed && strings.HasPrefix(lines.Text(), n.ID+" runs already") {
			killed = true
			signal(t, n.AgentPID, syscall.SIGKILL)
		}
	}
	if err := again.Wait(); err != nil || !killed {
		t.Fatalf("up: %v; the member was killed under its eyes: %v", err, killed)
	}
	if now := d.waitHealthy(30 * time.Second).node(n.ID).AgentPID; now == n.AgentPID {
		t.Errorf("%s is still process %d", n.ID, now)
	}
}

func TestWipedPrimaryNeverEmptiesItsReplicas(t *testing.T) {
	d := up(t)
	s := d.waitHealthy(30 * time.Second)
	ctx := t.Context()
	c := d.client(0)
	for i := range 500 {
		if err := c.Set(ctx, fmt.Sprintf("wipe:%d", i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	p := s.node(s.primary())
	signal(t, p.PID, syscall.SIGKILL)
	d.eraseData(p.ID)
	d.until(30*time.Second, "the exit is noticed", func() (bool, string) {
		now, err := d.status()
		return err == nil && now.epoch() > s.epoch(), fmt.Sprint(now, err)
	})
	after := d.waitHealthy(30 * time.Second)
	if after.primary() == p.ID {
		t.Errorf("the wiped node %s leads again", p.ID)
	}
	for _, n := range after.nodes() {
		size, err := direct(t, n).DBSize(ctx).Result()
		if err != nil || size < 500 {
			t.Errorf("%s holds %d keys, want 500 (%v)", n.ID, size, err)
		}
	}
}

// eraseData removes a server's data files, as a lost disk would.
func (d *deployment) eraseData(id string) {
	d.t.Helper()
	erased := 0
	err := filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !strings.Contains(path, string(filepath.Separator)+"member-"+strings.TrimPrefix(id, "n")+string(filepath.Separator)) {
			return nil
		}
		if strings.HasSuffix(path, ".rdb") || strings.HasSuffix(path, ".aof") || strings.HasSuffix(path, ".manifest") {
			erased++
			return os.Remove(path)
		}
		return nil
	})
	if err != nil || erased == 0 {
		d.t.Fatalf("erase the data of %s: %d files, %v", id, erased, err)
	}
}

// TestForgetfulReplicaDoesNotVote: a replica is killed, then the primary, then the replica restarts. Its word must not
// elect anybody while an acknowledged write may be missing (SAFETY A1).
func TestForgetfulReplicaDoesNotVote(t *testing.T) {
	for _, persistence := range []string{"none", "rdb", "aof"} {
		t.Run(persistence, func(t *testing.T) {
			d := up(t, "--persistence", persistence)
			s := d.waitHealthy(30 * time.Second)
			ctx := t.Context()
			var replicas []node
			for _, n := range s.nodes() {
				if n.ID != s.primary() {
					replicas = append(replicas, n)
				}
			}
			// A write that the primary and the first replica hold, and the second does not.
			signal(t, replicas[1].PID, syscall.SIGSTOP)
			c := d.client(0)
			if err := c.Set(ctx, "precious", "kept", 0).Err(); err != nil {
				t.Fatal(err)
			}
			p := s.node(s.primary())
			// That replica dies and comes back; the primary dies with its agent and stays away.
			signal(t, p.AgentPID, syscall.SIGKILL)
			signal(t, replicas[0].PID, syscall.SIGKILL)
			signal(t, p.PID, syscall.SIGKILL)
			signal(t, replicas[1].PID, syscall.SIGCONT)
			d.until(15*time.Second, "the election waits and names who is missing", func() (bool, string) {
				out, err := d.run("explain")
				return err == nil && strings.Contains(out, replicas[0].ID+" (restarted") && strings.Contains(out, p.ID), out + errText(err)
			})
			for range 10 { // it stays so
				if now, err := d.status(); err == nil && now.phase() == "serving" && now.primary() != p.ID {
					t.Fatalf("phase %s at epoch %d with primary %s: elected by those who forgot", now.phase(), now.epoch(), now.primary())
				}
				wait(200 * time.Millisecond)
			}
			// Now everybody is there, and nothing that is still missing can come back.
			d.start()
			after := d.waitHealthy(30 * time.Second)
			v, err := d.client(1).Get(ctx, "precious").Result()
			if persistence == "aof" && v != "kept" {
				t.Errorf("the acknowledged write is %q (%v) with primary %s", v, err, after.primary())
			}
			d.until(5*time.Second, "the history tells of a possible loss", func() (bool, string) {
				out, err := d.run("history")
				return err == nil && (v == "kept" || strings.Contains(out, "lost") || strings.Contains(out, "everything")), out
			})
		})
	}
}

func TestLongScriptIsBusyAndNoFailover(t *testing.T) {
	d := up(t)
	s := d.waitHealthy(30 * time.Second)
	done := make(chan error, 1)
	go func() {
		c := redis.NewClient(&redis.Options{Addr: s.node(s.primary()).Addr, ReadTimeout: 20 * time.Second, MaxRetries: -1})
		defer c.Close()
		done <- c.Eval(context.Background(), "local t=redis.call('TIME')[1]+3 while tonumber(redis.call('TIME')[1])<t do end return 1", nil).Err()
	}()
	busy := false
	d.until(15*time.Second, "the script ends", func() (bool, string) {
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("script: %v", err)
			}
			return true, ""
		default:
		}
		now, err := d.status()
		if err == nil && now.node(s.primary()).State == "busy" {
			busy = true
		}
		return false, fmt.Sprintf("%+v %v", now, err)
	})
	if !busy {
		t.Errorf("the primary was never reported as busy")
	}
	if now := d.waitHealthy(10 * time.Second); now.epoch() != s.epoch() {
		t.Errorf("a long script cost a failover: epoch %d, was %d", now.epoch(), s.epoch())
	}
}

// TestFirstAckSurvivesTheFirstPrimary: SAFETY A3.
func TestFirstAckSurvivesTheFirstPrimary(t *testing.T) {
	for i := range roundsOr(2) {
		func() {
			d := up(t)
			defer func() { _, _ = d.run("down") }()
			ctx := t.Context()
			c := d.client(1)
			if err := c.Set(ctx, "first", i, 0).Err(); err != nil {
				t.Fatalf("round %d: %v", i+1, err)
			}
			s, err := d.status()
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
			got, err := d.client(2).Get(ctx, "first").Int()
			if err != nil || got != i {
				t.Fatalf("round %d: the first acknowledged write is %d (%v), want %d", i+1, got, err, i)
			}
			t.Logf("round %d: read after %.1f ms", i+1, ms(time.Since(begun)))
		}()
	}
}
