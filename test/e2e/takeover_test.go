// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	goredis "github.com/redis/go-redis/v9"

	"redoubt/internal/redisd"
)

// watchedSetup is three real Sentinels, a primary and two replicas, on three addresses of this machine.
type watchedSetup struct {
	*legacy
	hosts []string
	auth  string // of the servers
	more  string // further lines of each sentinel.conf
}

func newWatchedSetup(t *testing.T, auth, more string) *watchedSetup {
	t.Helper()
	w := &watchedSetup{newBareLegacy(t), []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}, auth, more}
	for i, h := range w.hosts {
		w.serve(h, map[bool][]string{true: {"--replicaof", w.hosts[0] + " " + strconv.Itoa(w.d.base+100)}}[i > 0]...)
	}
	for _, h := range w.hosts {
		conf := fmt.Sprintf("port %d\nbind %s\nsentinel announce-ip %s\nsentinel monitor mymaster 127.0.0.1 %d 2\nsentinel down-after-milliseconds mymaster 1500\nsentinel failover-timeout mymaster 20000\n%s", w.d.base+60, h, h, w.d.base+100, more)
		if auth != "" {
			conf += "sentinel auth-pass mymaster " + auth + "\n"
		}
		if err := os.WriteFile(w.conf(h), []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		w.watch(h)
	}
	w.awaitWatched()
	return w
}

func (w *watchedSetup) conf(host string) string {
	return filepath.Join(w.d.dir, "sentinel-"+host+".conf")
}

func (w *watchedSetup) watch(host string) {
	w.start("sentinel-"+host, "redis-server", w.conf(host), "--sentinel")
}

// serve starts the server of a host.
func (w *watchedSetup) serve(host string, more ...string) {
	if w.auth != "" {
		more = append(more, "--requirepass", w.auth, "--masterauth", w.auth)
	}
	w.server(w.addr(host, 100), append(more, "--appendonly", "no")...)
}

func (w *watchedSetup) sentinels() (all []string) {
	for _, h := range w.hosts {
		all = append(all, w.addr(h, 60))
	}
	return all
}

// awaitWatched waits until every Sentinel knows all servers and all Sentinels.
func (w *watchedSetup) awaitWatched() {
	w.t.Helper()
	for _, s := range w.sentinels() {
		w.d.until(30*time.Second, "the Sentinel at "+s+" knows everybody", func() (bool, string) {
			m, err := redis.StringMap(ask(s, "SENTINEL", "MASTER", "mymaster"))
			return err == nil && m["flags"] == "master" && m["num-slaves"] == "2" && m["num-other-sentinels"] == "2", fmt.Sprint(m, err)
		})
	}
}

func (w *watchedSetup) writers(run string) []*writer {
	ws := []*writer{goRedisWriter("go-redis", "a:go:"+run, goredis.NewFailoverClient(&goredis.FailoverOptions{MasterName: "mymaster", SentinelAddrs: w.sentinels(), Password: w.auth}))}
	if _, err := exec.LookPath("node"); err == nil {
		list := []string{}
		for _, s := range w.sentinels() {
			host, port, _ := net.SplitHostPort(s)
			list = append(list, host, port)
		}
		ws = append(ws, processWriter(w.t, "ioredis", "a:io:"+run, append([]string{"env", "WRITER_PASSWORD=" + w.auth, "node", "../clients/ioredis_writer.js", "a:io:" + run, "sentinel", "mymaster"}, list...)...))
	}
	w.t.Cleanup(func() {
		for _, x := range ws {
			x.finish()
		}
	})
	for _, x := range ws {
		waitAcked(w.t, x, 50)
	}
	return ws
}

// redoubt runs the program under test.
func (w *watchedSetup) redoubt(args ...string) {
	w.t.Helper()
	text, err := exec.Command(w.d.bin, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("redoubt %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	w.t.Logf("redoubt %s\n%s", args[0]+" "+args[1], text)
}

func (w *watchedSetup) out() string { return filepath.Join(w.d.dir, "adopted") }

// plan makes the plan, and starts the members.
func (w *watchedSetup) plan(more ...string) {
	w.t.Helper()
	w.redoubt(append([]string{"adopt", "--sentinel", w.sentinels()[0], "--out", w.out(), "--store-port", strconv.Itoa(w.d.base + 40), "--api-listen", "HOST:" + strconv.Itoa(w.d.base+30)}, more...)...)
	files, _ := filepath.Glob(filepath.Join(w.out(), "*", "redoubt.yaml"))
	for _, f := range files {
		w.start("member-"+filepath.Base(filepath.Dir(f)), w.d.bin, "run", "-c", f)
	}
	w.awaitWaiting(3)
}

// awaitWaiting waits until so many members say that they leave the servers alone.
func (w *watchedSetup) awaitWaiting(members int) {
	w.t.Helper()
	w.d.until(20*time.Second, "the members wait", func() (bool, string) {
		r, err := http.Get("http://" + w.addr(w.hosts[0], 30) + "/v1/adoption")
		if err != nil {
			return false, err.Error()
		}
		defer r.Body.Close()
		out, err := io.ReadAll(r.Body)
		return err == nil && strings.Count(string(out), `"waiting"`) == members+1, string(out)
	})
}

// primary asks the servers who it is.
func (w *watchedSetup) primary() string {
	for _, h := range w.hosts {
		c, err := redis.Dial("tcp", w.addr(h, 100), redis.DialPassword(w.auth), redis.DialConnectTimeout(time.Second))
		if err != nil {
			continue
		}
		role, err := redis.Values(c.Do("ROLE"))
		c.Close()
		if err == nil && string(role[0].([]byte)) == "master" {
			return h
		}
	}
	return ""
}

// requireKept fails if a writer saw an error so far, or if the primary lacks what it acknowledged.
func (w *watchedSetup) requireKept(what string, ws []*writer) {
	w.t.Helper()
	c := goredis.NewClient(&goredis.Options{Addr: w.addr(w.primary(), 100), Password: w.auth})
	defer c.Close()
	for _, x := range ws {
		said := x.all()
		items, err := c.LRange(w.t.Context(), x.key, 0, -1).Result()
		if err != nil {
			w.t.Fatal(err)
		}
		has := map[string]bool{}
		for _, i := range items {
			has[i] = true
		}
		acked, lost, errs := 0, 0, map[string]int{}
		for _, a := range said {
			switch {
			case !a.ok:
				errs[a.err]++
			case has[strconv.FormatInt(a.seq, 10)]:
				acked++
			default:
				lost++
			}
		}
		w.t.Logf("%s: %s: %d acknowledged, %d lost, errors %v", what, x.name, acked, lost, errs)
		if lost > 0 || len(errs) > 0 {
			w.t.Errorf("%s: %s lost %d acknowledged writes, errors %v", what, x.name, lost, errs)
		}
	}
}

// follow waits until every writer has written something that began after at.
func (w *watchedSetup) follow(what string, ws []*writer, at time.Time, within time.Duration) {
	w.t.Helper()
	for _, x := range ws {
		w.d.until(within, what+": "+x.name+" writes again", func() (bool, string) {
			all := x.all()
			last := all[len(all)-1]
			return last.ok && last.start.After(at.Add(100*time.Millisecond)), last.err
		})
	}
	for _, x := range ws {
		w.t.Logf("%s: %s: write outage %.0f ms", what, x.name, ms(outage([]*writer{x}, at).outage))
	}
}

// TestSentinelsAreTakenOverFromAndHandedBackTo: a live set-up under load changes hands twice; its clients see nothing of that, and a failover
// by whoever decides.
func TestSentinelsAreTakenOverFromAndHandedBackTo(t *testing.T) {
	t.Parallel()
	script, said := script(t)
	w := newWatchedSetup(t, "secret", "sentinel notification-script mymaster "+script+"\nsentinel client-reconfig-script mymaster "+script+"\n")
	ws := w.writers("1")
	w.plan("--sentinel-conf", w.conf("127.0.0.1"))
	before := time.Now()
	w.redoubt("adopt", "--take-over", "--out", w.out(), "--yes")
	took := time.Since(before)
	w.follow("taking over", ws, time.Now(), 5*time.Second)
	w.requireKept("taking over", ws)
	if p := w.primary(); p != w.hosts[0] {
		t.Errorf("taking over moved the primary to %s", p)
	}
	t.Logf("taken over in %.0f ms", ms(took))
	for _, h := range w.hosts {
		w.requireOurs(w.addr(h, 60))
		w.end("sentinel-" + h) // it has ended; this reaps it
	}

	if err := os.Truncate(said, 0); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	at := time.Now()
	w.end("server-" + w.addr(w.hosts[0], 100))
	w.follow("failover by Redoubt", ws, at, 10*time.Second)
	w.requireScripts(said)
	w.serve(w.hosts[0], redisd.FrozenArguments()...)
	s := w.d.waitHealthy(20 * time.Second)
	if s.epoch() < 2 {
		t.Errorf("epoch %d after a failover", s.epoch())
	}

	for _, x := range ws { // what was lost with an asynchronous primary is another story
		x.finish()
	}
	ws = w.writers("2")
	w.handBack(ws)
	w.end("member-m1")
	w.requireKept("handing back", ws)
	old := w.primary()
	at = time.Now()
	w.end("server-" + w.addr(old, 100))
	w.follow("failover by the Sentinels", ws, at, 20*time.Second)
	if p := w.primary(); p == old || p == "" {
		t.Errorf("the primary is at %q, was at %q", p, old)
	}
}

// script is a program that appends its arguments to a file.
func script(t *testing.T) (path, said string) {
	t.Helper()
	dir := t.TempDir()
	path, said = filepath.Join(dir, "script.sh"), filepath.Join(dir, "said")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho \"$@\" >> "+said+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path, said
}

// requireScripts: every member has run both scripts for the failover, one of them as the leader.
func (w *watchedSetup) requireScripts(said string) {
	w.t.Helper()
	to := w.primary()
	moved := fmt.Sprintf(" start %s %d %s %d", w.hosts[0], w.d.base+100, to, w.d.base+100)
	switched := fmt.Sprintf("+switch-master mymaster %s %d %s %d", w.hosts[0], w.d.base+100, to, w.d.base+100)
	w.d.until(5*time.Second, "the scripts have run", func() (bool, string) {
		b, _ := os.ReadFile(said)
		text := string(b)
		return strings.Count(text, "mymaster leader"+moved) == 1 && strings.Count(text, "mymaster observer"+moved) == 2 && strings.Count(text, switched) == 3, text
	})
}

func (w *watchedSetup) requireOurs(addr string) {
	w.t.Helper()
	info, err := redis.String(ask(addr, "INFO", "server"))
	if err != nil || !strings.Contains(info, "redoubt_version") {
		w.t.Errorf("at %s no member answers: %v", addr, err)
	}
}

// handBack starts the Sentinels where the members have stopped answering.
func (w *watchedSetup) handBack(ws []*writer) {
	w.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		text, err := exec.Command(w.d.bin, "hand-back", "--out", w.out(), "--yes").CombinedOutput()
		w.t.Logf("redoubt hand-back: %v\n%s", err, text)
		if err != nil {
			w.t.Errorf("handing back: %v", err)
		}
	}()
	for _, h := range w.hosts {
		w.d.until(15*time.Second, "the port of the Sentinel of "+h+" is free", func() (bool, string) {
			c, err := net.DialTimeout("tcp", w.addr(h, 60), time.Second)
			if err == nil {
				c.Close()
			}
			return err != nil, fmt.Sprint(err)
		})
		w.watch(h)
	}
	<-done
	w.awaitWatched()
	w.requireSettings("1500")
	for name, cmd := range w.procs { // the members end, and leave the servers as they are
		if strings.HasPrefix(name, "member-") {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
			delete(w.procs, name)
		}
	}
	w.follow("after the members have ended", ws, time.Now(), 5*time.Second)
}

// try runs the program under test and returns what it says.
func (w *watchedSetup) try(args ...string) (string, error) {
	text, err := exec.Command(w.d.bin, args...).CombinedOutput()
	return string(text), err
}

// TestTakingOverCanBeRefusedRepeatedAndUndone: what cannot begin changes nothing, what was done is not done twice, and the way back leads forth
// again.
func TestTakingOverCanBeRefusedRepeatedAndUndone(t *testing.T) {
	t.Parallel()
	w := newWatchedSetup(t, "", "")
	w.plan("--sentinel-listen", w.addr("HOST", 61))
	over := []string{"adopt", "--take-over", "--keep-sentinels", "--out", w.out(), "--yes"}
	back := []string{"hand-back", "--out", w.out(), "--yes", "--wait", "10s"}

	w.end("member-m3")
	w.awaitWaiting(2)
	if text, err := w.try(over...); err == nil || !strings.Contains(text, "member m3 does not report") {
		t.Fatalf("a member is missing: %v\n%s", err, text)
	}
	w.requireSettings("1500")
	w.start("member-m3", w.d.bin, "run", "-c", filepath.Join(w.out(), "m3", "redoubt.yaml"))
	w.awaitWaiting(3)
	w.end("sentinel-" + w.hosts[2])
	if text, err := w.try(over...); err == nil || !strings.Contains(text, "the Sentinel at "+w.sentinels()[2]+" cannot be asked") {
		t.Fatalf("a Sentinel is missing: %v\n%s", err, text)
	}
	w.watch(w.hosts[2])
	w.awaitWatched()

	for round := range 2 {
		for range 2 { // the second time there is nothing left to do
			w.redoubt(over...)
		}
		s := w.d.waitHealthy(10 * time.Second)
		if s.epoch() != uint64(round+1) || s.primary() != "m1" {
			t.Errorf("round %d: epoch %d, primary %s", round+1, s.epoch(), s.primary())
		}
		for _, x := range w.sentinels() {
			if _, err := ask(x, "SENTINEL", "MASTER", "mymaster"); err == nil || !strings.Contains(err.Error(), "No such master") {
				t.Errorf("the Sentinel at %s still watches: %v", x, err)
			}
			host, _, _ := net.SplitHostPort(x)
			w.requireOurs(w.addr(host, 61))
		}
		if round == 0 {
			w.restarts(s)
		}
		for range 2 {
			w.redoubt(back...)
		}
		w.awaitWatched()
		w.requireSettings("1500")
	}
}

// requireSettings fails if a Sentinel has other settings than before.
func (w *watchedSetup) requireSettings(downAfter string) {
	w.t.Helper()
	for _, s := range w.sentinels() {
		m, err := redis.StringMap(ask(s, "SENTINEL", "MASTER", "mymaster"))
		if err != nil || m["quorum"] != "2" || m["down-after-milliseconds"] != downAfter || m["failover-timeout"] != "20000" {
			w.t.Errorf("the Sentinel at %s: %v %v", s, m, err)
		}
	}
}

// restarts: a member that is started again, and one that is handed over to a new process, go on with their servers.
func (w *watchedSetup) restarts(before status) {
	w.t.Helper()
	same := func(what string, gone int, id string) {
		w.t.Helper()
		w.d.until(15*time.Second, what, func() (bool, string) {
			s, err := w.d.status()
			return err == nil && s.healthy() && s.node(id).AgentPID != gone && s.epoch() == before.epoch(), fmt.Sprintf("%+v %v", s, err)
		})
	}
	w.end("member-m2")
	w.start("member-m2", w.d.bin, "run", "-c", filepath.Join(w.out(), "m2", "redoubt.yaml"))
	same("the member that was started again", before.node("m2").AgentPID, "m2")
	old := w.procs["member-m3"]
	signal(w.t, old.Process.Pid, syscall.SIGUSR2)
	same("the member that was handed over", old.Process.Pid, "m3")
	s, err := w.d.status()
	if err != nil {
		w.t.Fatal(err)
	}
	pid := s.node("m3").AgentPID
	w.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	_ = old.Wait()
	delete(w.procs, "member-m3")
	w.requireOurs(w.addr(w.hosts[2], 61))
}
