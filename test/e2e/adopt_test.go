// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"redoubt/internal/redisd"
)

// legacy is what there was before: servers that somebody started, and what stood in front of them.
type legacy struct {
	t     *testing.T
	d     *deployment
	procs map[string]*exec.Cmd
}

func newLegacy(t *testing.T) *legacy {
	t.Helper()
	if _, err := exec.LookPath("nutcracker"); err != nil {
		t.Skip("nutcracker is not installed")
	}
	return newBareLegacy(t)
}

// newBareLegacy is one without twemproxy.
func newBareLegacy(t *testing.T) *legacy {
	t.Helper()
	l := &legacy{t: t, d: &deployment{t: t, bin: binary(t), dir: t.TempDir(), base: freeBase(t)}, procs: map[string]*exec.Cmd{}}
	l.d.api = func() string { return l.addr("127.0.0.1", 30) }
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(l.d.dir, "*.log"))
			for _, f := range logs {
				text, _ := os.ReadFile(f)
				t.Logf("%s:\n%s", f, text[max(0, len(text)-3000):])
			}
		}
		for name := range l.procs {
			l.end(name)
		}
	})
	return l
}

func (l *legacy) addr(host string, offset int) string {
	return net.JoinHostPort(host, strconv.Itoa(l.d.base+offset))
}

func (l *legacy) start(name string, args ...string) {
	l.t.Helper()
	log, err := os.Create(filepath.Join(l.d.dir, name+".log"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.procs[name] = cmd
}

func (l *legacy) end(name string) {
	if cmd := l.procs[name]; cmd != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		delete(l.procs, name)
	}
}

// server starts a redis-server at an address, with its data in a directory of its own.
func (l *legacy) server(addr string, more ...string) {
	l.t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	dir := filepath.Join(l.d.dir, addr)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	l.start("server-"+addr, append([]string{"redis-server", "--port", port, "--bind", host, "--replica-announce-ip", host, "--dir", dir, "--save", "", "--appendonly", "yes", "--repl-diskless-sync-delay", "0"}, more...)...)
	l.d.until(10*time.Second, "the server at "+addr+" answers", func() (bool, string) {
		_, err := ask(addr, "PING")
		return err == nil || strings.HasPrefix(err.Error(), "NOAUTH"), fmt.Sprint(err)
	})
}

// pool starts twemproxy in front of servers.
func (l *legacy) pool(more string, servers ...string) (file string) {
	l.t.Helper()
	text := fmt.Sprintf("beta:\n  listen: %s\n  hash: murmur\n  distribution: ketama\n  redis: true\n%s  servers:\n", l.addr("127.0.0.1", 0), more)
	for _, s := range servers {
		text += "   - " + s + "\n"
	}
	file = filepath.Join(l.d.dir, "nutcracker.yml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.start("nutcracker", "nutcracker", "-c", file, "-s", strconv.Itoa(l.d.base+50))
	return file
}

// ask runs one command on a connection of its own: twemproxy understands no greeting, and closes connections that send one.
func ask(addr string, args ...any) (any, error) {
	c, err := redis.Dial("tcp", addr, redis.DialConnectTimeout(2*time.Second), redis.DialReadTimeout(15*time.Second))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Do(args[0].(string), args[1:]...)
}

// through asks at the pool's address.
func (l *legacy) through(args ...any) (any, error) { return ask(l.addr("127.0.0.1", 0), args...) }

const adoptedKeys = 400

func (l *legacy) fill() {
	l.t.Helper()
	l.d.until(10*time.Second, "twemproxy answers", func() (bool, string) {
		_, err := l.through("SET", "key:0", "0")
		return err == nil, fmt.Sprint(err)
	})
	for i := range adoptedKeys {
		if _, err := l.through("SET", fmt.Sprint("key:", i), i); err != nil {
			l.t.Fatal(err)
		}
	}
}

// adopt runs the verb and starts the members that it wrote files for.
func (l *legacy) adopt(args ...string) {
	l.t.Helper()
	out := filepath.Join(l.d.dir, "adopted")
	text, err := exec.Command(l.d.bin, append([]string{"adopt", "--out", out, "--store-port", strconv.Itoa(l.d.base + 40), "--api-listen", "HOST:" + strconv.Itoa(l.d.base+30)}, args...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%v\n%s", err, text)
	}
	l.t.Logf("%s", text)
	l.end("nutcracker")
	l.end("sentinel")
	files, _ := filepath.Glob(filepath.Join(out, "*", "redoubt.yaml"))
	for _, f := range files {
		l.start("member-"+filepath.Base(filepath.Dir(f)), l.d.bin, "run", "-c", f)
	}
}

// requireAll reads every key at its place: no key has moved, none is missing.
func (l *legacy) requireAll(before map[string]int64) {
	l.t.Helper()
	for i := range adoptedKeys {
		if v, err := redis.Int(l.through("GET", fmt.Sprint("key:", i))); err != nil || v != i {
			l.t.Fatalf("key:%d is %d, %v", i, v, err)
		}
	}
	for addr, n := range before {
		if now := l.size(addr); now != n {
			l.t.Errorf("%s held %d keys, and now %d", addr, n, now)
		}
	}
}

func (l *legacy) size(addr string) int64 {
	l.t.Helper()
	n, err := redis.Int64(ask(addr, "DBSIZE"))
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

func (l *legacy) shardOf(key string) string {
	shard, err := redis.String(l.through("PROXY", "SHARDOF", key))
	if err != nil {
		return err.Error()
	}
	return shard
}

// TestAdoptTwemproxy: the servers of a pool become a ring, and every key is where twemproxy had put it. A cache's server that is
// gone is left out, and taken back.
func TestAdoptTwemproxy(t *testing.T) {
	t.Parallel()
	l := newLegacy(t)
	var servers []string
	before := map[string]int64{}
	for i := range 3 {
		addr := l.addr("127.0.0.1", 100+i)
		l.server(addr)
		servers = append(servers, fmt.Sprintf("%s:%d", addr, i+1))
	}
	servers[0] += " first"
	file := l.pool("  auto_eject_hosts: true\n", servers...)
	l.fill()
	for i := range 3 {
		before[l.addr("127.0.0.1", 100+i)] = l.size(l.addr("127.0.0.1", 100+i))
	}
	l.adopt("--twemproxy", file)
	l.d.waitHealthy(30 * time.Second)
	l.requireAll(before)

	key := ""
	for i := 0; key == ""; i++ {
		if l.shardOf(fmt.Sprint("key:", i)) == "beta-s2" {
			key = fmt.Sprint("key:", i)
		}
	}
	second := l.addr("127.0.0.1", 101)
	l.end("server-" + second)
	l.d.until(15*time.Second, "the shard is left out", func() (bool, string) { s := l.shardOf(key); return s != "beta-s2", s })
	if _, err := l.through("SET", key, "elsewhere"); err != nil {
		t.Errorf("a key of the shard that is left out: %v", err)
	}
	l.server(second, redisd.FrozenArguments()...)
	l.d.until(20*time.Second, "the shard is back", func() (bool, string) { s := l.shardOf(key); return s == "beta-s2", s })
	if v, err := redis.String(l.through("GET", key)); err != nil || v == "elsewhere" || !strings.HasSuffix(key, ":"+v) {
		t.Errorf("%s is %q, %v", key, v, err)
	}
}

// TestAdoptTwemproxyWithSentinel: replicas come along, nobody's data are erased, and the shards fail over.
func TestAdoptTwemproxyWithSentinel(t *testing.T) {
	t.Parallel()
	l := newLegacy(t)
	hosts := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
	var servers []string
	conf := fmt.Sprintf("port %d\nbind 127.0.0.1\n", l.d.base+60)
	for s := range 2 {
		primary := l.addr(hosts[s], 100+s)
		l.server(primary)
		for _, h := range hosts {
			if addr := l.addr(h, 100+s); addr != primary {
				l.server(addr, "--replicaof", hosts[s]+" "+strconv.Itoa(l.d.base+100+s))
			}
		}
		servers = append(servers, fmt.Sprintf("%s:1 shard%d", primary, s))
		conf += fmt.Sprintf("sentinel monitor shard%d %s %d 1\n", s, hosts[s], l.d.base+100+s)
	}
	file := l.pool("", servers...)
	sentinel := filepath.Join(l.d.dir, "sentinel.conf")
	if err := os.WriteFile(sentinel, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	l.start("sentinel", "redis-server", sentinel, "--sentinel")
	l.fill()
	l.d.until(30*time.Second, "the Sentinel knows the replicas", func() (bool, string) {
		a, err := redis.Values(ask(l.addr("127.0.0.1", 60), "SENTINEL", "REPLICAS", "shard0"))
		b, _ := redis.Values(ask(l.addr("127.0.0.1", 60), "SENTINEL", "REPLICAS", "shard1"))
		return len(a) == 2 && len(b) == 2, fmt.Sprint(len(a), len(b), err)
	})
	before := map[string]int64{}
	for i := range 2 {
		for _, h := range hosts {
			addr := l.addr(h, 100+i)
			l.d.until(20*time.Second, "all keys are replicated", func() (bool, string) {
				before[addr] = l.size(addr)
				return before[addr] == l.size(l.addr(hosts[i], 100+i)), fmt.Sprint(before)
			})
		}
	}
	lame := l.addr(hosts[2], 100)
	l.end("server-" + lame)
	args := []string{"--twemproxy", file, "--sentinel", l.addr("127.0.0.1", 60), "--listen", l.addr("HOST", 0)}
	if text, err := exec.Command(l.d.bin, append([]string{"adopt", "--out", filepath.Join(l.d.dir, "none")}, args...)...).CombinedOutput(); err == nil || !strings.Contains(string(text), "replica "+lame+" is ") {
		t.Errorf("adopted without a replica that is down: %v\n%s", err, text)
	}
	l.server(lame, "--replicaof", hosts[0]+" "+strconv.Itoa(l.d.base+100)) // the Sentinel has to find it again meanwhile
	l.adopt(args...)
	st := l.d.waitHealthy(30 * time.Second)
	l.requireAll(before)
	for i, sh := range st.Deployments[0].Shards {
		for _, n := range sh.Nodes {
			if n.ID == sh.Primary && n.Addr != l.addr(hosts[i], 100+i) {
				t.Errorf("%s is the primary of shard %d", n.Addr, i)
			}
		}
	}
	l.end("server-" + l.addr(hosts[1], 101))
	l.requireAll(nil)
}
