// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
	"redoubt/test/ports"
)

func TestWhenTheAgentDiesItsGuardFencesAPrimary(t *testing.T) {
	t.Parallel()
	serverBinary(t)
	addr := ports.Addr(t)
	_, kill := startAgent(t, addr, t.TempDir(), "promote")
	c := client(t, addr, "")
	must(t, c, "SET", "k", "v")
	began := time.Now()
	kill()
	select {
	case <-c.gone:
	case <-time.After(5 * time.Second):
		t.Fatal("the client was not cut")
	}
	took := time.Since(began)
	t.Logf("guard fenced after %s", took)
	if took > 300*time.Millisecond {
		t.Fatalf("the guard needed %s", took)
	}
	m := parseInfo(must(t, client(t, addr, ""), "INFO", "replication").text)
	if !m.frozen() {
		t.Fatalf("after the agent's death: role %s, following %q", m.role(), m.following())
	}
}

func TestWhenTheAgentDiesItsGuardKillsAPrimaryThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	guardKillsWhatHangs(t, "promote")
}

// guardKillsWhatHangs stops the server of an agent of that kind, and kills the agent.
func guardKillsWhatHangs(t *testing.T, kind string) {
	t.Helper()
	serverBinary(t)
	pid, kill := startAgent(t, ports.Addr(t), t.TempDir(), kind)
	p, err := openProcess(pid, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.release)
	if err := p.signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	kill()
	if err := p.await(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
}

func TestWhenTheAgentDiesItsGuardLeavesAReplicaAlone(t *testing.T) {
	t.Parallel()
	serverBinary(t)
	p := primary(t, nil)
	addr, dir := ports.Addr(t), t.TempDir()
	pid, kill := startAgent(t, addr, dir, "replica")
	c := client(t, addr, "")
	admin := adminClient(t, addr, dir)
	must(t, admin, "CONFIG", "SET", "masteruser", redis.ReplicationUser)
	must(t, admin, "CONFIG", "SET", "masterauth", string(tenure().Secret))
	must(t, admin, "REPLICAOF", "127.0.0.1", fmt.Sprint(portOf(p.addr)))
	see(t, p, "the replica", func(redis.Observation) bool {
		return strings.Contains(must(t, c, "INFO", "replication").text, "master_link_status:up")
	})
	var guard guardRecord
	if err := loadJSON(dir, guardFile, &guard); err != nil || guard.PID == 0 {
		t.Fatalf("no guard: %+v, %v", guard, err)
	}
	g, err := openProcess(guard.PID, guard.Start, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.release)
	kill()
	if err := g.await(within(t, 3*time.Second)); err != nil {
		t.Fatal(err)
	}
	m := parseInfo(must(t, c, "INFO", "replication").text)
	if m.frozen() || m.role() != topo.RoleReplica || m["master_link_status"] != "up" || int(parseInfo(must(t, c, "INFO", "server").text).num("process_id")) != pid {
		t.Fatal("the guard touched a replica")
	}
}

func TestTheNextAgentAdoptsTheRunningServer(t *testing.T) {
	t.Parallel()
	binary := serverBinary(t)
	addr, dir := ports.Addr(t), t.TempDir()
	pid, kill := startAgent(t, addr, dir, "replica")
	kill()
	n, err := Managed(within(t, 5*time.Second), Options{Addr: addr, Dir: dir, Binary: binary, Persistence: PersistNone})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	if o := see(t, n, "the adopted server", isUp); o.PID != pid || !o.Frozen || len(o.Problems) > 0 {
		t.Fatalf("process %d was running; adopted %+v", pid, o)
	}
	began := time.Now()
	if err := n.Kill(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Logf("exit of an adopted server seen after %s", time.Since(began))
	if err := n.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if o := see(t, n, "the new process", isUp); o.PID == pid || !o.Frozen {
		t.Fatalf("after the restart: %+v", o)
	}
	_ = n.Kill(within(t, time.Second))
}

func TestAnAdoptedServerThatStartedAnewBehindOurBackIsJudged(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	run := n.knownRun
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	o := n.managed.o
	again, err := Managed(within(t, time.Second), o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if seen := see(t, again, "the adopted primary", isUp); seen.RunID != run || seen.Role != topo.RolePrimary || len(seen.Problems) > 0 {
		t.Fatalf("a primary that was promoted by an earlier agent: %+v", seen)
	}
	if err := saveJSON(o.Dir, bootFile, bootRecord{RunID: strings.Repeat("1", 40)}); err != nil {
		t.Fatal(err)
	}
	third, err := Managed(within(t, time.Second), o)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if seen := see(t, third, "the judgement", isUp); !seen.Frozen || len(seen.Problems) != 1 || !strings.HasPrefix(seen.Problems[0], "boot-not-frozen: ") {
		t.Fatalf("a primary with a run id that nobody judged: %+v", seen)
	}
	_ = third.Kill(within(t, time.Second))
}

func TestAForeignServerOnThePortIsAClearError(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	see(t, n, "a listening server", isUp)
	_, err := Managed(within(t, time.Second), Options{Addr: n.addr, Dir: t.TempDir(), Binary: serverBinary(t)})
	if err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Fatalf("got %v", err)
	}
}

func TestAForeignPrimaryThatTakesThePortIsNeverTouched(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	see(t, n, "an answering server", isUp)
	pid := n.process().pid
	foreign := primary(t, nil)
	n.mu.Lock()
	n.own = foreign.addr // as if our server had lost its port to somebody else's
	n.mu.Unlock()
	n.admin.close()
	if o := n.Observe(within(t, time.Second)); o.Health != topo.HealthUnreachable || o.PID != pid || len(o.Problems) != 1 {
		t.Fatalf("a foreign server looks like %+v", o)
	}
	n.setRole(topo.RoleReplica)
	if err := n.Fence(within(t, time.Second)); !errors.Is(err, errForeign) {
		t.Fatalf("a fence on a foreign server: %v", err)
	}
	if _, err := n.Promote(within(t, time.Second), topo.Elected{}, tenure()); !errors.Is(err, errForeign) {
		t.Fatalf("a promotion on a foreign server: %v", err)
	}
	if o := foreign.Observe(within(t, time.Second)); o.Role != topo.RolePrimary {
		t.Fatalf("the foreign server was touched: %+v", o)
	}
}

func TestAnExitIsNoticedAtOnceAndWakesTheAgent(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	see(t, n, "an answering server", isUp)
	for len(n.Wake()) > 0 {
		<-n.Wake()
	}
	began := time.Now()
	if err := n.process().signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-n.process().gone
	gone := time.Since(began)
	select {
	case <-n.Wake():
	case <-time.After(time.Second):
		t.Fatal("no wake-up")
	}
	t.Logf("exit seen after %s", gone)
	if st, err := readStat(n.process().pid); err == nil && st.state == 'Z' {
		see(t, n, "the child reaped", func(redis.Observation) bool { _, err := readStat(n.process().pid); return err != nil })
	}
}

func TestAnObservationIsInterruptedByTheExit(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	see(t, n, "an answering server", isUp)
	stop(t, n)
	got := make(chan redis.Observation, 1)
	ctx := within(t, 5*time.Second)
	go func() { got <- n.Observe(ctx) }()
	eventually(t, "the pending question", func() bool { n.mu.Lock(); c := n.admin; n.mu.Unlock(); return c != nil && c.last() != nil })
	began := time.Now()
	_ = n.process().signal(unix.SIGKILL)
	o := <-got
	if took := time.Since(began); o.Health != topo.HealthExited || took > time.Second {
		t.Fatalf("after %s: %+v", took, o)
	}
}

// eventually waits for a condition that is not about an observation.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx := within(t, 5*time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never saw %s", what)
		}
	}
}

func TestAWrongPasswordIsDeniedAndARightOneIsNotOnTheCommandLine(t *testing.T) {
	t.Parallel()
	secret := `s3"cr\et é`
	n := primary(t, func(o *Options) { o.Password = secret })
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n.process().pid))
	if err != nil || strings.Contains(string(cmdline), "s3") {
		t.Fatalf("the command line is %q: %v", cmdline, err)
	}
	must(t, client(t, n.addr, secret), "SET", "k", "v")
	for _, wrong := range []string{"wrong", ""} {
		a, err := Attached(AttachOptions{Addr: n.addr, Password: wrong})
		if err != nil {
			t.Fatal(err)
		}
		if o := a.Observe(within(t, time.Second)); o.Health != topo.HealthDenied {
			t.Fatalf("with password %q: %+v", wrong, o)
		}
		_ = a.Close()
	}
	r := open(t, func(o *Options) { o.Password = secret })
	if o := follow(t, r, n); o.Keys != 1 {
		t.Fatalf("the replica with the password: %+v", o)
	}
}

func TestALoadingServerIsToldApart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, func(o *Options) { keepsAll(o); o.Dir = dir })
	promote(t, n)
	fill(t, client(t, n.addr, ""), 5000)
	if err := n.Kill(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	n.managed.o.Directives = map[string]string{"key-load-delay": "200"} // µs; 1 s in all, with events every 1024 keys
	if err := n.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	seen := map[topo.Health]int{}
	see(t, n, "the end of loading", func(o redis.Observation) bool { seen[o.Health]++; return isUp(o) })
	if seen[topo.HealthLoading] < 3 || seen[topo.HealthHung] > 0 || seen[topo.HealthBusy] > 0 || seen[topo.HealthExited] > 0 {
		t.Fatalf("while loading the server looked like %v", seen)
	}
	if o := n.Observe(within(t, time.Second)); o.Keys != 5000 || !o.Kept || !o.Frozen {
		t.Fatalf("after loading: %+v", o)
	}
}

func fill(t *testing.T, c *conn, keys int) {
	t.Helper()
	var cmds [][]string
	for i := range keys {
		cmds = append(cmds, []string{"SET", fmt.Sprint("key:", i), "v"})
	}
	if _, err := c.do(within(t, 5*time.Second), cmds...); err != nil {
		t.Fatal(err)
	}
}

func TestSettingsThatLieAreReportedAndConfigured(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	see(t, n, "an answering server", isUp)
	c := client(t, n.addr, "")
	for _, s := range [][2]string{{"replica-read-only", "no"}, {"replica-ignore-maxmemory", "no"}, {"repl-backlog-ttl", "3600"}} {
		must(t, c, "CONFIG", "SET", s[0], s[1])
	}
	o := see(t, n, "the settings", func(o redis.Observation) bool { return len(o.Settings) > 0 })
	if want := "[replica-ignore-maxmemory is no, must be yes replica-read-only is no, must be yes]"; fmt.Sprint(o.Settings) != want {
		t.Fatalf("settings are %v", o.Settings)
	}
	s := redis.Settings{MinReplicas: 1, MinReplicasMaxLag: 1}
	for range 2 {
		if err := n.Configure(within(t, time.Second), s); err != nil {
			t.Fatal(err)
		}
	}
	if o := n.Observe(within(t, time.Second)); len(o.Settings) > 0 {
		t.Fatalf("after Configure: %v", o.Settings)
	}
	for name, want := range map[string]string{"repl-backlog-ttl": "0", "min-replicas-to-write": "1", "min-replicas-max-lag": "1"} {
		if got := must(t, c, "CONFIG", "GET", name).items[1].text; got != want {
			t.Fatalf("%s is %s", name, got)
		}
	}
}

func TestADiskThatCannotBeWrittenIsNamed(t *testing.T) {
	t.Parallel()
	n := primary(t, func(o *Options) { o.Persistence = PersistRDB })
	c := client(t, n.addr, "")
	must(t, c, "SET", "k", "v")
	// A directory in the place of the file makes the last step of a save impossible, also for root.
	if err := os.MkdirAll(filepath.Join(n.managed.o.Dir, "dump.rdb", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, c, "BGSAVE")
	o := see(t, n, "the trouble", func(o redis.Observation) bool { return len(o.Problems) > 0 })
	if !strings.HasPrefix(o.Problems[0], "disk-full: ") || o.Health != topo.HealthUp {
		t.Fatalf("looks like %+v", o)
	}
	if err := run(t, c, "SET", "k", "w").err(); !isCode(err, "MISCONF") {
		t.Fatalf("a write got %v", err)
	}
}

func TestAMemoryLimitThatIsReachedIsNamed(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	must(t, client(t, n.addr, ""), "CONFIG", "SET", "maxmemory", "100kb")
	see(t, n, "the trouble", func(o redis.Observation) bool {
		return len(o.Problems) == 1 && strings.HasPrefix(o.Problems[0], "oom: ")
	})
}

func TestProxiesConnectionsAreCounted(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	for i, name := range []string{redis.ProxyClientName + "a", redis.PresentClientName + "a", redis.PinnedClientName + "a", "other"} {
		must(t, client(t, n.addr, ""), "CLIENT", "SETNAME", name)
		if got, err := n.ProxyConnections(within(t, time.Second)); err != nil || got != min(i+1, 2) {
			t.Fatalf("counted %d: %v", got, err)
		}
	}
}

func TestANewAdminConnectionKillsTheEarlierOne(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	see(t, n, "an answering server", isUp)
	first := n.admin
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// The earlier connection, still open somewhere, as the server sees it.
	stale := client(t, n.addr, "")
	id := must(t, stale, "CLIENT", "ID").num
	if err := saveJSON(n.state, adminFile, adminRecord{ID: id, Addr: stale.nc.LocalAddr().String()}); err != nil {
		t.Fatal(err)
	}
	again, err := Managed(within(t, time.Second), n.managed.o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	see(t, again, "an answering server", isUp)
	select {
	case <-stale.gone:
	case <-time.After(time.Second):
		t.Fatal("the earlier admin connection lives")
	}
	if again.admin == first {
		t.Fatal("the same connection")
	}
	_ = again.Kill(within(t, time.Second))
}

func TestALostLinkIsStartedAnewAtOnce(t *testing.T) {
	t.Parallel()
	p, r := primary(t, nil), open(t, nil)
	follow(t, r, p)
	c := client(t, p.addr, "")
	syncs := func() string {
		m := parseInfo(must(t, c, "INFO", "stats").text)
		return m["sync_full"] + " " + m["sync_partial_ok"]
	}
	atOnce := 0
	for range 5 { // by the server's own cron it comes back at any time within a second
		before := syncs()
		must(t, c, "CLIENT", "KILL", "TYPE", "replica")
		see(t, r, "the lost link, or the next one", func(o redis.Observation) bool { return !o.LinkUp || syncs() != before })
		began := time.Now()
		if err := r.Follow(within(t, 5*time.Second), p.addr, tenure()); err != nil {
			t.Fatal(err)
		}
		see(t, r, "the link", func(o redis.Observation) bool { return o.LinkUp })
		took := time.Since(began)
		t.Logf("it came back after %s", took)
		if took < 150*time.Millisecond {
			atOnce++
		}
	}
	if atOnce < 3 {
		t.Errorf("at once in %d rounds of 5: by the server's own cron", atOnce)
	}
	role, pos, err := r.PrimaryPosition(within(t, time.Second), p.addr)
	if err != nil || role != topo.RolePrimary || pos.ReplID == "" {
		t.Fatalf("the primary's position: %s, %+v, %v", role, pos, err)
	}
}

func BenchmarkObserve(b *testing.B) {
	n := primary(b, nil)
	ctx := context.Background()
	for b.Loop() {
		if o := n.Observe(ctx); o.Health != topo.HealthUp {
			b.Fatal(o.Detail)
		}
	}
}

func BenchmarkFenceAndPromoteWithoutPriming(b *testing.B) {
	n := primary(b, nil)
	ctx := context.Background()
	var fences, promotions time.Duration
	for b.Loop() {
		began := time.Now()
		if err := n.Fence(ctx); err != nil {
			b.Fatal(err)
		}
		fences += time.Since(began)
		e := electedOf(n.Observe(ctx))
		began = time.Now()
		if _, err := n.Promote(ctx, e, tenure()); err != nil {
			b.Fatal(err)
		}
		promotions += time.Since(began)
	}
	b.ReportMetric(float64(fences.Microseconds())/float64(b.N), "µs/fence")
	b.ReportMetric(float64(promotions.Microseconds())/float64(b.N), "µs/promotion")
}
