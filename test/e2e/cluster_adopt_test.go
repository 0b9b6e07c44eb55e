// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/internal/slots"
)

// estate is a Redis Cluster that was there before: 3 × (1+1) servers on three hosts, which a supervisor (the test) starts.
type estate struct {
	t     *testing.T
	d     *deployment
	out   string
	addrs []string
	procs map[string]*exec.Cmd
	ms    map[string]*exec.Cmd
}

const estatePassword = "estate"

func newEstate(t *testing.T, nodeTimeout time.Duration) *estate {
	t.Helper()
	e := &estate{t: t, d: &deployment{t: t, bin: binary(t), dir: t.TempDir(), base: freeBase(t)}, procs: map[string]*exec.Cmd{}, ms: map[string]*exec.Cmd{}}
	e.out = filepath.Join(e.d.dir, "adopted")
	e.d.api = func() string {
		var all []string
		for i := 1; i <= 3; i++ {
			all = append(all, e.at(i, 30))
		}
		return strings.Join(all, ",")
	}
	t.Cleanup(e.stop)
	for _, port := range []int{100, 110} {
		for host := 1; host <= 3; host++ {
			e.addrs = append(e.addrs, e.at(host, port))
		}
	}
	for _, a := range e.addrs {
		e.supervise(a, nodeTimeout)
	}
	for _, a := range e.addrs {
		e.d.until(10*time.Second, a+" answers", func() (bool, string) {
			err := e.direct(a).Ping(t.Context()).Err()
			return err == nil, errText(err)
		})
	}
	args := append(append([]string{"--no-auth-warning", "-a", estatePassword, "--cluster", "create"}, e.addrs...), "--cluster-replicas", "1", "--cluster-yes")
	if out, err := exec.Command("redis-cli", args...).CombinedOutput(); err != nil {
		t.Fatalf("create a cluster: %v\n%s", err, out)
	}
	e.d.until(30*time.Second, "the cluster is well", func() (bool, string) {
		for _, a := range e.addrs {
			info, err := e.direct(a).ClusterInfo(t.Context()).Result()
			about, err2 := e.direct(a).Info(t.Context(), "replication").Result()
			if err != nil || err2 != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(about, "master_link_status:up") && !strings.Contains(about, "state=online") {
				return false, a + " is not well yet"
			}
		}
		return true, ""
	})
	return e
}

// at is an address of a host of this estate.
func (e *estate) at(host, offset int) string {
	return net.JoinHostPort(fmt.Sprint("127.0.0.", host), strconv.Itoa(e.d.base+offset))
}

func (e *estate) supervise(addr string, nodeTimeout time.Duration) {
	e.t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	dir := filepath.Join(e.d.dir, "server-"+addr)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		e.t.Fatal(err)
	}
	cmd := exec.Command("redis-server", "--port", port, "--bind", host, "--dir", dir, "--appendonly", "yes", "--save", "", "--repl-diskless-sync-delay", "0", "--requirepass", estatePassword, "--masterauth", estatePassword,
		"--cluster-enabled", "yes", "--cluster-announce-ip", host, "--cluster-port", strconv.Itoa(n+200), "--cluster-node-timeout", strconv.FormatInt(nodeTimeout.Milliseconds(), 10), "--logfile", filepath.Join(dir, "server.log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.procs[addr] = cmd
}

func (e *estate) kill(addr string) {
	_ = e.procs[addr].Process.Kill()
	_ = e.procs[addr].Wait()
}

func (e *estate) stop() {
	if e.t.Failed() {
		e.d.showLogs()
		logs, _ := filepath.Glob(filepath.Join(e.out, "*", "log"))
		for _, f := range logs {
			b, _ := os.ReadFile(f)
			e.t.Logf("%s:\n%s", f, b[max(0, len(b)-6000):])
		}
	}
	e.stopMembers()
	for a := range e.procs {
		e.kill(a)
	}
}

func (e *estate) stopMembers() {
	for _, cmd := range e.ms {
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}
	for id, cmd := range e.ms {
		_ = cmd.Wait()
		delete(e.ms, id)
	}
}

func (e *estate) direct(addr string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: addr, Password: estatePassword, MaxRetries: -1})
	e.t.Cleanup(func() { _ = c.Close() })
	return c
}

// aware is a client of the cluster that goes by its servers.
func (e *estate) aware() *redis.ClusterClient {
	return redis.NewClusterClient(&redis.ClusterOptions{Addrs: e.addrs, Password: estatePassword, ClusterStateReloadInterval: 500 * time.Millisecond})
}

// settings are those that decide about elections, and the ones that Redoubt changes, on all servers.
func (e *estate) settings() map[string]string {
	all := map[string]string{}
	for _, a := range e.addrs {
		for _, name := range []string{"cluster-replica-no-failover", "cluster-allow-replica-migration", "cluster-require-full-coverage", "cluster-node-timeout", "masteruser", "masterauth", "repl-ping-replica-period", "min-replicas-to-write", "repl-backlog-size"} {
			v, err := e.direct(a).ConfigGet(e.t.Context(), name).Result()
			if err != nil {
				e.t.Fatal(err)
			}
			all[a+" "+name] = v[name]
		}
		users, err := e.direct(a).Do(e.t.Context(), "ACL", "USERS").StringSlice()
		if err != nil {
			e.t.Fatal(err)
		}
		all[a+" users"] = strings.Join(users, " ")
	}
	return all
}

// roles says who is a primary, by one server's word.
func (e *estate) roles(at string) (primaries []string) {
	text, err := e.direct(at).ClusterNodes(e.t.Context()).Result()
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 8 && strings.Contains(f[2], "master") && !slices.Contains(strings.Split(f[2], ","), "fail") {
			addr, _, _ := strings.Cut(f[1], "@")
			primaries = append(primaries, addr)
		}
	}
	slices.Sort(primaries)
	return primaries
}

// adopt writes the members' files, and starts the members.
func (e *estate) adopt() {
	t := e.t
	t.Helper()
	var out []byte
	e.d.until(10*time.Second, "all servers agree, so that the cluster can be adopted", func() (bool, string) {
		var err error
		out, err = e.adoptVerb().CombinedOutput()
		return err == nil, string(out)
	})
	t.Logf("%s", out)
	e.startMembers()
}

func (e *estate) adoptVerb() *exec.Cmd {
	cmd := exec.Command(e.d.bin, "adopt", "--cluster", e.addrs[4], "--password-env", "ESTATE_PASSWORD", "--out", e.out, "--store-port", strconv.Itoa(e.d.base+40), "--api-listen", "HOST:"+strconv.Itoa(e.d.base+30), "--listen", "HOST:"+strconv.Itoa(e.d.base))
	cmd.Env = append(os.Environ(), "ESTATE_PASSWORD="+estatePassword)
	return cmd
}

func (e *estate) startMembers() {
	t := e.t
	t.Helper()
	for i := 1; i <= 3; i++ {
		id := fmt.Sprint("m", i)
		e.patient(filepath.Join(e.out, id, "redoubt.yaml"))
		log, err := os.Create(filepath.Join(e.out, id, "log"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(e.d.bin, "run", "-c", filepath.Join(e.out, id, "redoubt.yaml"))
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = log.Close()
		e.ms[id] = cmd
	}
}

// patient gives the leases of a deployment more time, so that a machine that stalls for a second does not look like an error of
// the adoption: an exit is seen at once all the same.
func (e *estate) patient(file string) {
	e.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		e.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), "    mode: cluster\n", "    mode: cluster\n    timing: {profile: wan}\n", 1)), 0o600); err != nil {
		e.t.Fatal(err)
	}
}

// writers are clients that know the servers, one for each shard.
func (e *estate) writers(run string) []*writer {
	var ws []*writer
	for _, key := range []string{"b", "c", "d"} { // slots 3300, 7365, 11298
		ws = append(ws, goRedisWriter("ClusterClient at the servers, "+key, key+":"+run, e.aware()))
	}
	return e.acked(ws)
}

func (e *estate) acked(ws []*writer) []*writer {
	e.t.Cleanup(func() {
		for _, w := range ws {
			w.finish()
		}
	})
	for _, w := range ws {
		waitAcked(e.t, w, 20)
	}
	return ws
}

// errorsOf counts what clients saw go wrong.
func errorsOf(ws []*writer) (n int, last string) {
	for _, w := range ws {
		for _, a := range w.all() {
			if !a.ok && a.err != "" {
				n, last = n+1, w.name+": "+a.err
			}
		}
	}
	return n, last
}

// TestAClusterIsAdoptedWhileItServesAndHandedBack: nobody notices that a Redis Cluster is taken over; then Redoubt fails over for it; then
// it is handed back, and its own failover works again.
func TestAClusterIsAdoptedWhileItServesAndHandedBack(t *testing.T) {
	e := newEstate(t, 2*time.Second)
	before, primaries := e.settings(), e.roles(e.addrs[0])
	ws := e.writers("take")
	begun := time.Now()
	e.adopt()
	s := e.d.waitHealthy(30 * time.Second)
	t.Logf("taken over %.1f s after the first member was started", time.Since(begun).Seconds())
	plain := e.acked([]*writer{goRedisWriter("go-redis through Redoubt", "plain", redis.NewClient(&redis.Options{Addr: e.at(2, 0), Password: estatePassword, MaxRetries: -1}))})
	wait(time.Second)
	if n, last := errorsOf(append(ws, plain...)); n > 0 {
		t.Errorf("%d errors while the cluster was taken over; the last: %s", n, last)
	}
	for _, sh := range s.Deployments[0].Shards {
		if sh.Epoch != 1 {
			t.Errorf("%s is at epoch %d: it was failed over", sh.ID, sh.Epoch)
		}
	}
	if now := e.roles(e.addrs[0]); !slices.Equal(now, primaries) {
		t.Errorf("primaries were %v and are %v", primaries, now)
	}
	for name, v := range e.settings() {
		if strings.HasSuffix(name, "replica-no-failover") && v != "yes" {
			t.Errorf("%s is %s", name, v)
		}
	}
	for _, w := range append(ws, plain...) {
		w.finish()
	}
	requireNothingLost(t, e.judge(append(ws, plain...)))

	e.reshard()
	e.failover(s)
	e.handBack(before)
}

// reshard moves some slots of the adopted cluster while clients of both kinds write.
func (e *estate) reshard() {
	t := e.t
	moved := slots.Tag(slots.Count - 1) // the last slot is the first to go
	plain := redis.NewClient(&redis.Options{Addr: e.at(2, 0), Password: estatePassword, MaxRetries: -1})
	from, err := plain.Do(t.Context(), "PROXY", "SHARDOF", moved).Text()
	if err != nil {
		t.Fatal(err)
	}
	ws := e.acked([]*writer{
		goRedisWriter("go-redis through Redoubt, of a slot that moves", moved, plain),
		goRedisWriter("ClusterClient at the servers, of a slot that moves", "aware{"+moved+"}", e.aware()),
	})
	st := e.d.reshard(30*time.Second, "--weight", from+"=0.95", "--batch", "64")
	if st.Moved == 0 {
		t.Errorf("%+v", st)
	}
	for _, w := range ws {
		waitAcked(t, w, len(w.all())+20)
		w.finish()
	}
	if n, last := errorsOf(ws[:1]); n > 0 {
		t.Errorf("%d errors through Redoubt while slots moved; the last: %s", n, last)
	}
	requireNothingLost(t, e.judge(ws))
	if to, err := redis.NewClient(&redis.Options{Addr: e.at(1, 0), Password: estatePassword}).Do(t.Context(), "PROXY", "SHARDOF", moved).Text(); err != nil || to == from {
		t.Errorf("the slot is at %s still (%v)", to, err)
	}
	e.d.until(10*time.Second, "all servers agree", func() (bool, string) {
		out, err := e.d.run("cluster", "check")
		return err == nil, out
	})
}

func (e *estate) judge(ws []*writer) verdict {
	e.t.Helper()
	return judgeBy(e.t, redis.NewClient(&redis.Options{Addr: e.at(2, 0), Password: estatePassword}), ws)
}

// failover kills a primary, which its supervisor starts again at once, and empty: its replica is not wiped, Redoubt elects it, long
// before the cluster would, and the emptied server becomes its replica.
func (e *estate) failover(s status) {
	t := e.t
	sh := s.Deployments[0].Shards[0]
	old := sh.node(sh.Primary)
	key := ""
	plainClient := redis.NewClient(&redis.Options{Addr: e.at(2, 0), Password: estatePassword, MaxRetries: -1})
	defer plainClient.Close()
	for i := range 1000 {
		key = fmt.Sprint("fail:", i)
		if at, err := plainClient.Do(t.Context(), "PROXY", "SHARDOF", key).Text(); err != nil || at == sh.ID {
			break
		}
	}
	ws := e.acked([]*writer{
		goRedisWriter("go-redis through Redoubt", key, redis.NewClient(&redis.Options{Addr: e.at(2, 0), Password: estatePassword, MaxRetries: -1})),
		goRedisWriter("ClusterClient at the servers", key+":aware{"+key+"}", e.aware()),
	})
	at := time.Now()
	e.kill(old.Addr)
	if err := os.RemoveAll(filepath.Join(e.d.dir, "server-"+old.Addr, "appendonlydir")); err != nil { // it comes back empty, and at once
		t.Fatal(err)
	}
	e.supervise(old.Addr, 2*time.Second)
	e.d.goesOn(ws[:1], at, 20*time.Second)
	wait(300 * time.Millisecond)
	t.Logf("kill -9 of a primary: go-redis through Redoubt waited for %.0f ms", ms(outage(ws[:1], at).outage))
	e.d.goesOn(ws, time.Now(), 20*time.Second)
	now := e.d.waitHealthy(30 * time.Second)
	if now.Deployments[0].Shards[0].Primary == old.ID {
		t.Errorf("%s is primary again", old.ID)
	}
	for _, w := range ws {
		w.finish()
	}
	v := e.judge(ws)
	t.Logf("%d acknowledged, %d lost, %d errors: %v", v.acked, v.lost, v.errors, v.messages)
	if v.lost > 50 {
		t.Errorf("%d acknowledged writes lost: more than what can be on its way", v.lost)
	}
}

// handBack leaves the cluster to itself: its settings are as they were, clients notice nothing, and its own failover works.
func (e *estate) handBack(before map[string]string) {
	t := e.t
	ws := e.writers("back")
	begun := time.Now()
	out, err := e.d.run("hand-back", "--yes")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("handed back after %.1f s: %s", time.Since(begun).Seconds(), strings.TrimSpace(out))
	e.stopMembers()
	wait(500 * time.Millisecond)
	if n, last := errorsOf(ws); n > 0 {
		t.Errorf("%d errors while the cluster was handed back; the last: %s", n, last)
	}
	after := e.settings()
	for name, v := range before {
		if after[name] != v {
			t.Errorf("%s was %q and is %q", name, v, after[name])
		}
	}
	for _, w := range ws {
		w.finish()
	}
	primaries := e.roles(e.addrs[0])
	victim := primaries[0]
	other := primaries[1]
	at := time.Now()
	e.kill(victim)
	e.d.until(30*time.Second, "the cluster elects another primary by itself", func() (bool, string) {
		now := e.roles(other)
		return len(now) == 3 && !slices.Contains(now, victim), fmt.Sprint(now)
	})
	t.Logf("its own failover took %.1f s", time.Since(at).Seconds())
}
