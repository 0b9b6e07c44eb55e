// SPDX-License-Identifier: Apache-2.0

package front

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/route"
	"redoubt/internal/slots"
	"redoubt/test/ports"
)

func idOf(name string) string {
	sum := sha1.Sum([]byte(name))
	return hex.EncodeToString(sum[:])
}

// bareCluster starts primaries of a real cluster with equal parts of the slots, and waits until they serve.
func bareCluster(t testing.TB, n int) []string {
	t.Helper()
	port := make([]int, 2*n)
	for i := range port {
		port[i] = ports.Free(t)
	}
	names := make([]string, n)
	for i := range names {
		names[i] = "s" + strconv.Itoa(i)
	}
	even := slots.Even(names...)
	var addrs []string
	for i := range n {
		dir := t.TempDir()
		var conf strings.Builder
		for k := range n {
			flags := "master"
			if k == i {
				flags = "myself,master"
			}
			fmt.Fprintf(&conf, "%s 127.0.0.1:%d@%d %s - 0 0 %d connected %s\n", idOf(names[k]), port[k], port[n+k], flags, k+1, even.Ranges(k)[0])
		}
		fmt.Fprintf(&conf, "vars currentEpoch %d lastVoteEpoch 0\n", n)
		if err := os.WriteFile(filepath.Join(dir, "nodes.conf"), []byte(conf.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, startAt(t, port[i], dir, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(port[n+i]), "--cluster-require-full-coverage", "no"))
	}
	for _, a := range addrs {
		w := dial(t, a)
		if !until(15*time.Second, func() bool { return strings.Contains(w.do("CLUSTER", "INFO"), "cluster_state:ok") }) {
			t.Fatal("the cluster does not come up: " + w.do("CLUSTER", "INFO"))
		}
	}
	return addrs
}

// clusterFront is a front of bare cluster nodes.
func clusterFront(t testing.TB, n int, change ...func(*Options)) (*Front, []string) {
	t.Helper()
	addrs := bareCluster(t, n)
	var shards []Shard
	var names []string
	for i, a := range addrs {
		names = append(names, "s"+strconv.Itoa(i))
		shards = append(shards, Shard{Name: names[i], Dial: dialer(a)})
	}
	table, ok := route.FromCommand([]byte(dial(t, addrs[0]).do("COMMAND")))
	if !ok {
		t.Fatal("the server's table cannot be read")
	}
	m := slots.Even(names...)
	change = append([]func(*Options){func(o *Options) {
		o.Place, o.Table = nil, func() *route.Table { return table }
		o.Cluster = &Cluster{Map: func() *slots.Map { return m }, Face: func() *Topology { return faceOf(m) }}
	}}, change...)
	return runFront(t, shards, change...), addrs
}

// faceOf is a topology of one proxy for each shard, and a replica of the first one.
func faceOf(m *slots.Map) *Topology {
	t := &Topology{Me: idOf("s1"), Epoch: 7}
	for i, name := range m.Shards() {
		t.Nodes = append(t.Nodes, ClusterNode{ID: idOf(name), ShardID: idOf("shard " + name), Addr: "10.0.0." + strconv.Itoa(i+1) + ":6379", BusPort: 16379, Slots: m.Ranges(i), Epoch: uint64(i)})
	}
	t.Nodes = append(t.Nodes, ClusterNode{ID: idOf("r"), ShardID: idOf("shard s0"), Addr: "10.0.0.9:6379", BusPort: 16379, Primary: idOf("s0"), Slots: m.Ranges(0)})
	return t
}

func TestAClusterIsOneServer(t *testing.T) {
	t.Parallel()
	f, addrs := clusterFront(t, 3)
	w := f.client(t)
	var names, pairs []string
	for i := range 200 {
		names = append(names, "k"+strconv.Itoa(i))
		pairs = append(pairs, names[i], strconv.Itoa(i))
	}
	if got := w.do(append([]string{"MSET"}, pairs...)...); got != "+OK\r\n" {
		t.Fatal(got)
	}
	want := "*201\r\n"
	for i := range names {
		want += bulk(strconv.Itoa(i))
	}
	if got := w.do(append(append([]string{"MGET"}, names...), "nothing")...); got != want+"$-1\r\n" {
		t.Fatalf("%q", got)
	}
	sizes := 0
	for _, a := range addrs {
		n, _ := strconv.Atoi(strings.Trim(dial(t, a).do("DBSIZE"), ":\r\n"))
		if n == 0 {
			t.Errorf("nothing is on %s", a)
		}
		sizes += n
	}
	if sizes != 200 {
		t.Errorf("%d keys are on the servers", sizes)
	}
	w.want(":200\r\n", "DBSIZE")
	if got := w.do(append([]string{"EXISTS"}, names...)...); got != ":200\r\n" {
		t.Error(got)
	}
	if got := w.do(append([]string{"TOUCH", "k1"}, names[:10]...)...); got != ":11\r\n" {
		t.Error(got)
	}
	if got := w.do(append([]string{"DEL"}, names[:50]...)...); got != ":50\r\n" {
		t.Error(got)
	}
	if got := w.do(append([]string{"UNLINK"}, names...)...); got != ":150\r\n" {
		t.Error(got)
	}
	w.want("+OK\r\n", "SET {t}a 1")
	w.want("+OK\r\n", "MSET {t}b 2 {t}c 3")
	w.want("*2\r\n$1\r\n1\r\n$1\r\n3\r\n", "MGET {t}a {t}c")
	w.want(":3\r\n", "DBSIZE")
	found := 0
	for cursor := "0"; ; {
		r := w.do("SCAN", cursor, "COUNT", "100")
		parts := strings.Split(r, "\r\n")
		found += strings.Count(r, "{t}")
		if cursor = parts[2]; cursor == "0" {
			break
		}
	}
	if found != 3 {
		t.Errorf("SCAN finds %d keys", found)
	}
	if got := w.do("KEYS", "*"); !strings.HasPrefix(got, "*3\r\n") {
		t.Error(got)
	}
	if got := w.do("RANDOMKEY"); !strings.Contains(got, "{t}") {
		t.Error(got)
	}
	w.want("+OK\r\n", "FLUSHALL")
	w.want(":0\r\n", "DBSIZE")
}

// TestACommandOverSlotsIsRefusedAsByAServer: b and f are on one server (slots 3300 and 3168).
func TestACommandOverSlotsIsRefusedAsByAServer(t *testing.T) {
	t.Parallel()
	f, addrs := clusterFront(t, 3)
	w, direct := f.client(t), dial(t, addrs[0])
	for _, c := range []string{"RENAME b f", "SINTERSTORE b f", "PFCOUNT b f", "BLPOP b f 1", "EVAL return(1) 2 b f", "WATCH b f", "SDIFF b f", "LMOVE b f LEFT LEFT", "COPY b f",
		"COPY b {b}2 DB 1", "MOVE b 1", "SELECT 0", "SELECT 1", "SELECT x", "SELECT", "SWAPDB 0 1", "SORT b BY w_*", "SORT b", "MSETNX b 1 f 2", "DEL", "MSET b", "MGET",
		"READONLY", "READWRITE", "ASKING", "READONLY x", "CLUSTER COUNTKEYSINSLOT 3300", "CLUSTER GETKEYSINSLOT 3300 5", "CLUSTER COUNTKEYSINSLOT 99999", "CLUSTER KEYSLOT b", "CLUSTER KEYSLOT",
		"CLUSTER NONSENSE", "CLUSTER", "CLUSTER SLOTS x", "CLUSTER GETKEYSINSLOT 3300 x", "CLUSTER COUNT-FAILURE-REPORTS x", "CLUSTER REPLICAS x"} {
		direct.send(strings.Fields(c)...)
		want := strings.ReplaceAll(direct.next(), "Cluster mode", "cluster mode")
		if got := w.do(strings.Fields(c)...); got != want {
			t.Errorf("%s: %q, a server says %q", c, got, want)
		}
	}
	w.want(":0\r\n", "DEL b f x") // is split
}

func TestATransactionIsOfOneSlot(t *testing.T) {
	t.Parallel()
	f, _ := clusterFront(t, 3)
	w := f.client(t)
	w.want("+OK\r\n", "MULTI")
	w.want("+QUEUED\r\n", "PING")
	w.want("+QUEUED\r\n", "SET {b}1 x")
	w.want("+QUEUED\r\n", "PUBLISH c x")
	w.want("+QUEUED\r\n", "MGET b {b}1")
	w.want("*4\r\n+PONG\r\n+OK\r\n:0\r\n*2\r\n$-1\r\n$1\r\nx\r\n", "EXEC")
	for _, second := range []string{"SET f 2", "SET x 2", "MGET b f", "SELECT 1", "CLUSTER RESET", "FLUSHALL", "SPUBLISH f x"} {
		w.want("+OK\r\n", "WATCH b")
		w.want("+OK\r\n", "WATCH f") // a server takes that
		w.want("+OK\r\n", "MULTI")
		w.want("+QUEUED\r\n", "SET b 2")
		if got := w.do(strings.Fields(second)...); got[0] != '-' {
			t.Errorf("%s in a transaction: %q", second, got)
		}
		w.want("-"+execAbort+"\r\n", "EXEC")
	}
	w.want("-"+crossSlot+"\r\n", "WATCH b x") // and of two servers
	w.want("$-1\r\n", "GET b")
}

func TestWhatWouldChangeTheClusterIsRefused(t *testing.T) {
	t.Parallel()
	f, _ := clusterFront(t, 1)
	w := f.client(t)
	for _, c := range []string{"RESET", "RESET HARD", "FAILOVER TAKEOVER", "SETSLOT 1 STABLE", "FORGET x", "MEET 127.0.0.1 1", "ADDSLOTS 1", "DELSLOTS 1", "FLUSHSLOTS", "REPLICATE x",
		"SAVECONFIG", "BUMPEPOCH", "SET-CONFIG-EPOCH 5"} {
		if got := w.do(append([]string{"CLUSTER"}, strings.Fields(c)...)...); !strings.HasPrefix(got, "-ERR CLUSTER "+strings.Fields(c)[0]+" is refused") {
			t.Errorf("CLUSTER %s: %q", c, got)
		}
	}
}

func TestAClusterAwareClientIsToldTheTopology(t *testing.T) {
	t.Parallel()
	f, _ := clusterFront(t, 2)
	w := f.client(t)
	node := func(host, id string) string {
		return "*4\r\n" + bulk(host) + ":6379\r\n" + bulk(idOf(id)) + "*0\r\n"
	}
	w.want("*2\r\n*4\r\n:0\r\n:8191\r\n"+node("10.0.0.1", "s0")+node("10.0.0.9", "r")+"*3\r\n:8192\r\n:16383\r\n"+node("10.0.0.2", "s1"), "CLUSTER SLOTS")
	lines := w.do("CLUSTER", "NODES")
	for _, want := range []string{idOf("s0") + " 10.0.0.1:6379@16379 master - 0 0 0 connected 0-8191\n", idOf("s1") + " 10.0.0.2:6379@16379 myself,master - 0 0 1 connected 8192-16383\n",
		idOf("r") + " 10.0.0.9:6379@16379 slave " + idOf("s0") + " 0 0 0 connected\n"} {
		if !strings.Contains(lines, want) {
			t.Errorf("%q is not in %q", want, lines)
		}
	}
	if got := w.do("CLUSTER", "INFO"); !strings.Contains(got, "cluster_state:ok\r\n") || !strings.Contains(got, "cluster_slots_ok:16384\r\n") || !strings.Contains(got, "cluster_size:2\r\n") {
		t.Error(got)
	}
	w.want(bulk(idOf("s1")), "CLUSTER MYID")
	w.want(bulk(idOf("shard s1")), "CLUSTER MYSHARDID")
	w.want("*1\r\n"+bulk(idOf("r")+" 10.0.0.9:6379@16379 slave "+idOf("s0")+" 0 0 0 connected"), "CLUSTER REPLICAS "+idOf("s0"))
	w.want("-ERR The specified node is not a master\r\n", "CLUSTER REPLICAS "+idOf("r"))
	w.want(":0\r\n", "CLUSTER COUNT-FAILURE-REPORTS "+idOf("r"))
	w.want("*0\r\n", "CLUSTER LINKS")
	if got := w.do("CLUSTER", "SHARDS"); !strings.HasPrefix(got, "*2\r\n*4\r\n"+bulk("slots")+"*2\r\n:0\r\n:8191\r\n"+bulk("nodes")+"*2\r\n*14\r\n"+bulk("id")+bulk(idOf("s0"))) {
		t.Errorf("%q", got)
	}
	if got := w.do("HELLO", "3"); !strings.Contains(got, bulk("mode")+bulk("cluster")) {
		t.Errorf("%q", got)
	}
	if got := w.do("CLUSTER", "SHARDS"); !strings.HasPrefix(got, "*2\r\n%2\r\n"+bulk("slots")) || strings.Count(got, "%7\r\n") != 3 {
		t.Errorf("%q", got)
	}
	if got := w.do("INFO"); !strings.Contains(got, "redis_mode:cluster\r\n") || !strings.Contains(got, "cluster_enabled:1\r\n") {
		t.Errorf("%q", got)
	}
}

func TestWithoutAFaceItIsNoCluster(t *testing.T) {
	t.Parallel()
	f, _ := clusterFront(t, 2, func(o *Options) { o.Cluster.Face = nil })
	w := f.client(t)
	for _, c := range []string{"SLOTS", "SHARDS", "NODES", "INFO", "MYID", "KEYSLOT x", "RESET HARD"} {
		w.want("-"+noCluster+"\r\n", "CLUSTER "+c)
	}
	if got := w.do("INFO"); !strings.Contains(got, "redis_mode:standalone\r\n") || !strings.Contains(got, "cluster_enabled:0\r\n") {
		t.Errorf("%q", got)
	}
	w.want("+OK\r\n", "MSET a 1 b 2 c 3")
}

// TestMessagesComeOnce: servers of a cluster tell each other what is published, so a pattern lives on one shard only; what they say
// of keys they keep to themselves.
func TestMessagesComeOnce(t *testing.T) {
	t.Parallel()
	f, addrs := clusterFront(t, 3)
	for _, a := range addrs {
		dial(t, a).want("+OK\r\n", "CONFIG SET notify-keyspace-events Kg$")
	}
	sub, w := f.client(t), f.client(t)
	sub.want("*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n", "PSUBSCRIBE *")
	for i := range 30 {
		w.send("PUBLISH", "c"+strconv.Itoa(i), "x")
		w.next()
	}
	seen := map[string]int{}
	for range 30 {
		m := strings.Split(sub.next(), "\r\n")
		seen[m[6]]++
	}
	if len(seen) != 30 {
		t.Errorf("%v", seen)
	}
	if m, err := sub.try(200 * time.Millisecond); err == nil {
		t.Errorf("one message more: %q", m)
	}
	keys := f.client(t)
	keys.do("PSUBSCRIBE", "__keyspace@0__:*")
	for i := range 10 {
		w.want("+OK\r\n", "SET k"+strconv.Itoa(i)+" 1")
	}
	for range 10 {
		if m := keys.next(); !strings.Contains(m, "pmessage") {
			t.Errorf("%q", m)
		}
	}
}

// TestARedirectionNeverReachesAClient: the slot map lies behind: a slot is on its way from the first shard to the second.
func TestARedirectionNeverReachesAClient(t *testing.T) {
	t.Parallel()
	var now atomic.Pointer[slots.Map]
	now.Store(slots.Even("s0", "s1"))
	f, addrs := clusterFront(t, 2, func(o *Options) { o.Cluster.Map = now.Load; o.Limits.Redirect = time.Second })
	w := f.client(t)
	w.want("+OK\r\n", "SET b 1")
	for _, a := range []string{addrs[1], addrs[0]} { // b has slot 3300
		dial(t, addrs[0]).do("DEL", "b")
		if got := dial(t, a).do("CLUSTER", "SETSLOT", "3300", "NODE", idOf("s1")); got != "+OK\r\n" {
			t.Fatal(got)
		}
	}
	w.send("SET", "b", "2")
	if m, err := w.try(100 * time.Millisecond); err == nil {
		t.Fatalf("an answer before the map is new: %q", m)
	}
	now.Store(now.Load().With(3300, "s1"))
	if got := w.next(); got != "+OK\r\n" {
		t.Fatal(got)
	}
	w.want("$1\r\n2\r\n", "GET b")
	now.Store(slots.Even("s0", "s1")) // behind again
	w.raw("SET b 3\r\nSET b 4\r\nGET f\r\n")
	for range 2 {
		if got := w.next(); !strings.HasPrefix(got, "-TRYAGAIN the command was not executed") {
			t.Errorf("%q", got)
		}
	}
	if got := w.next(); got != "$-1\r\n" {
		t.Errorf("%q", got)
	}
	if got := w.do("MGET", "b", "f", "a"); !strings.HasPrefix(got, "-TRYAGAIN ") {
		t.Errorf("%q", got)
	}
	if got := w.do("MSET", "b", "5", "a", "1"); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN ") {
		t.Errorf("%q", got)
	}
	for _, c := range []string{"SSUBSCRIBE b", "EVAL return(1) 1 b", "BLPOP b 1", "WATCH b"} {
		if got := w.do(strings.Fields(c)...); !strings.HasPrefix(got, "-TRYAGAIN ") {
			t.Errorf("%s: %q", c, got)
		}
	}
}

// TestARedirectionEnds: a slot that nobody serves is given up after a time, and the client goes on.
func TestARedirectionEnds(t *testing.T) {
	t.Parallel()
	f, addrs := clusterFront(t, 2, func(o *Options) { o.Limits.Redirect = 300 * time.Millisecond })
	dial(t, addrs[0]).want("+OK\r\n", "CLUSTER DELSLOTS 3300")
	w := f.client(t)
	begun := time.Now()
	if got := w.do("SET", "b", "1"); !strings.HasPrefix(got, "-TRYAGAIN the command was not executed") {
		t.Errorf("%q", got)
	}
	if d := time.Since(begun); d < 300*time.Millisecond || d > 5*time.Second {
		t.Errorf("given up after %s", d)
	}
	w.want("$-1\r\n", "GET f")
	w.send("SET", "b", "1")
	_ = w.conn.Close() // the client leaves meanwhile
	if !until(5*time.Second, func() bool { return f.Stats().Clients == 0 }) {
		t.Error("the client is still there")
	}
}

func TestAKeyOfNoShardIsAskedForAgain(t *testing.T) {
	t.Parallel()
	var now atomic.Pointer[slots.Map]
	f, _ := clusterFront(t, 1, func(o *Options) { o.Cluster.Map = now.Load })
	w := f.client(t)
	for range 2 {
		w.want("-TRYAGAIN the command was not executed: no shard that is known here has the slot of its keys\r\n", "SET b 1")
		w.want("-TRYAGAIN the command was not executed: no shard that is known here has the slot of its keys\r\n", "MGET b f")
		now.Store(slots.Even("elsewhere"))
	}
	now.Store(slots.Even("elsewhere", "s0"))
	w.want("+OK\r\n", "SET d 1") // slot 11298
	w.want("$2\r\ns0\r\n", "PROXY SHARDOF d")
}
