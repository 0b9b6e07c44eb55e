// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/proxy"
	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// member is a front whose shards are proxies on the same loops, each with one server, as in a member of a ring.
type member struct {
	*Front
	t       testing.TB
	store   *memstore.Cluster
	proxies []*proxy.Proxy
	addrs   []string
	docs    []topo.Shard
	change  []func(*Options, *proxy.Options)
}

// startMember starts n shards.
func startMember(t testing.TB, n int, change ...func(*Options, *proxy.Options)) *member {
	t.Helper()
	m := &member{t: t, store: memstore.New(clock.Real{}, "m"), change: change}
	po := proxy.Options{}
	for _, c := range change {
		c(&Options{}, &po)
	}
	if po.Cluster {
		m.addrs = bareCluster(t, n)
	}
	for i := range n {
		if !po.Cluster {
			m.addrs = append(m.addrs, startServer(t))
		}
		m.docs = append(m.docs, topo.Shard{Format: topo.Format, ID: "s" + strconv.Itoa(i), Spec: topo.Spec{Deployment: "d", Durability: topo.Async, Timing: topo.LANTiming(),
			Nodes: []topo.Node{{ID: "n", Addr: m.addrs[i]}}}})
		m.serve(i)
	}
	m.run(nil, 0)
	return m
}

// heir is a second member of the same shards, with the port of the first one, as another process would be.
func (m *member) heir() *member {
	m.t.Helper()
	file, err := m.Front.o.Listener.(*net.TCPListener).File()
	if err != nil {
		m.t.Fatal(err)
	}
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		m.t.Fatal(err)
	}
	h := &member{t: m.t, store: m.store, addrs: m.addrs, docs: m.docs, change: m.change}
	h.run(l, m.Front.LastID()+1000)
	for i, p := range h.proxies {
		if !until(5*time.Second, func() bool { return p.Stats().Sending }) {
			m.t.Fatalf("shard %d does not go on", i)
		}
	}
	return h
}

// run starts the proxies, and a front of them.
func (m *member) run(l net.Listener, first uint64) {
	t := m.t
	drive := runLoops(t)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { stop(); running.Wait() })
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	fo, po := Options{}, proxy.Options{Clock: clock.Real{}, ID: "p", Listen: proxy.ListenNowhere, Engine: drive.Engine, Log: log, FirstID: first}
	for _, c := range m.change {
		c(&fo, &po)
	}
	var shards []Shard
	for _, d := range m.docs {
		o := po
		o.View = view.New(m.store.Member("m"), o.Clock, topo.KeyShard+d.ID, log)
		p, err := proxy.New(o)
		if err != nil {
			t.Fatal(err)
		}
		m.proxies = append(m.proxies, p)
		running.Go(func() { _ = o.View.Run(ctx) })
		running.Go(func() { _ = p.Run(ctx) })
		<-p.Running()
		shards = append(shards, Shard{Name: d.ID})
	}
	table, ok := route.FromCommand([]byte(dial(t, m.addrs[0]).do("COMMAND")))
	if !ok {
		t.Fatal("the server's table cannot be read")
	}
	m.Front = runFront(t, shards, func(o *Options) {
		fo.Shards, fo.Listener, fo.Log = o.Shards, o.Listener, o.Log
		if fo.Cluster == nil && fo.Place == nil {
			fo.Place = o.Place
		}
		*o = fo
		if l != nil {
			_ = o.Listener.Close()
			o.Listener = l
		}
		o.Loops, o.Table, o.FirstID = drive, func() *route.Table { return table }, first
		o.Join = func(shard, loop int, event func()) (Stream, error) { return m.proxies[shard].Join(loop, event) }
		o.Rejoin = func(shard, loop int, event func(), record []byte, file int) (Stream, error) {
			return m.proxies[shard].Rejoin(loop, event, record, file)
		}
	})
}

// serve has a shard's document say that its server is the primary.
func (m *member) serve(i int) {
	m.t.Helper()
	w := dial(m.t, m.addrs[i])
	info := fieldsOf(string(resp.Text([]byte(w.do("INFO")))))
	m.write(i, func(a *topo.Assigned) {
		a.Epoch++
		a.Phase, a.Primary, a.RunID = topo.PhaseServing, "n", info["run_id"]
		a.History = append(a.History, topo.HistoryEntry{Epoch: a.Epoch, ReplID: info["master_replid"]})
	})
}

// park has a shard wait for a primary.
func (m *member) park(i int) {
	m.write(i, func(a *topo.Assigned) { a.Phase = topo.PhaseFencing; a.Epoch++ })
}

func (m *member) write(i int, change func(*topo.Assigned)) {
	m.t.Helper()
	change(&m.docs[i].Assigned)
	key := topo.KeyShard + m.docs[i].ID
	doc, _ := m.store.Doc(key)
	if _, err := m.store.Member("m").Swap(context.Background(), key, m.docs[i].Encode(), doc.Rev); err != nil {
		m.t.Fatal(err)
	}
}

// What is answered on the way of a plain command, by a connection of its own, by the front, and refused: in one pipeline, in order.
func TestEveryWayOfACommandInOnePipeline(t *testing.T) {
	t.Parallel()
	m := startMember(t, 3)
	a, b, c := keyOn(3, 0, "a"), keyOn(3, 1, "b"), keyOn(3, 2, "c")
	for range 20 {
		w := m.client(t)
		steps := strings.NewReplacer("\x01", a, "\x02", b, "\x03", c)
		script := []string{
			"SET \x01 1", "+OK\r\n", "SET \x02 2", "+OK\r\n", "GET \x01", bulk("1"), "MGET \x01 \x02 \x03", "*3\r\n" + bulk("1") + bulk("2") + "$-1\r\n",
			"PING", "+PONG\r\n", "MULTI", "+OK\r\n", "INCR \x02", "+QUEUED\r\n", "EXEC", "*1\r\n:3\r\n", "GET \x02", bulk("3"), "NONSENSE \x03", "",
			"CLIENT SETNAME me", "+OK\r\n", "CLIENT GETNAME", bulk("me"), "BLPOP \x03 0.01", "*-1\r\n", "RPUSH \x03 x", ":1\r\n", "BLPOP \x03 0", "*2\r\n" + bulk(c) + bulk("x"),
			"DEL \x01 \x02 \x03", ":2\r\n", "SUBSCRIBE \x01", "*3\r\n" + bulk("subscribe") + bulk(a) + ":1\r\n", "GET \x01", "", "UNSUBSCRIBE \x01", "*3\r\n" + bulk("unsubscribe") + bulk(a) + ":0\r\n",
			"GET \x01", "$-1\r\n", "SELECT 1", "+OK\r\n", "DBSIZE", ":0\r\n", "SELECT 0", "+OK\r\n", "EVAL return(KEYS[1]) 1 \x02", bulk(b), "MSET \x01 1 \x02 2 \x03 3", "+OK\r\n", "DBSIZE", ":3\r\n",
			"RENAME \x01 \x02", "-" + crossSlot + "\r\n", "ECHO x", bulk("x"), "CLIENT REPLY SKIP", "none", "SET \x01 9", "none", "GET \x01", bulk("9"), "FLUSHALL", "+OK\r\n",
		}
		var all []byte
		for i := 0; i < len(script); i += 2 {
			var words [][]byte
			for _, word := range strings.Fields(steps.Replace(script[i])) {
				words = append(words, []byte(word))
			}
			all = resp.AppendCommand(nil, words...)
			w.raw(string(all))
		}
		for i := 0; i < len(script); i += 2 {
			want := script[i+1]
			if want == "none" {
				continue
			}
			got := w.next()
			if want == "" && got[0] != '-' || want != "" && got != want {
				t.Fatalf("%s: %q, want %q", script[i], got, want)
			}
		}
		_ = w.conn.Close()
	}
}

// Clients with pipelines of every kind, on as many loops as there are, get what one server would answer.
func TestRandomPipelinesThroughProxies(t *testing.T) {
	t.Parallel()
	m := startMember(t, 3)
	compareClients(t, m.client, 80)
}

func TestAParkedShardHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	m := startMember(t, 2)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	w, other := m.client(t), m.client(t)
	w.want("+OK\r\n", "MSET "+a+" 1 "+b+" 2")
	m.park(1)
	if !until(5*time.Second, func() bool { return !m.proxies[1].Stats().Sending }) {
		t.Fatal("the shard goes on")
	}
	w.raw("GET " + b + "\r\nGET " + a + "\r\nMGET " + a + " " + b + "\r\nINCR " + a + "\r\n")
	if !until(5*time.Second, func() bool { return m.proxies[1].Stats().Parked == 2 }) {
		t.Fatalf("%+v", m.proxies[1].Stats())
	}
	for i := range 1000 { // of the same loops, and those who only need the other shard
		other.want("+OK\r\n", "SET "+a+" "+strconv.Itoa(i))
	}
	third := m.client(t)
	third.raw(strings.Repeat("GET "+a+"\r\n", 100))
	for range 100 {
		if got := third.next(); got != bulk("999") {
			t.Fatal(got)
		}
	}
	if got, err := w.try(20 * time.Millisecond); err == nil {
		t.Fatalf("%q was given before its turn", got)
	}
	m.serve(1)
	for _, want := range []string{bulk("2"), bulk("1"), "*2\r\n" + bulk("1") + bulk("2"), ":2\r\n"} {
		if got := w.next(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
}

func TestAClientThatLeavesInTheMiddle(t *testing.T) {
	m := startMember(t, 2)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	before := runtime.NumGoroutine()
	watch := m.client(t)
	watch.want("+PONG\r\n", "PING")
	value := strings.Repeat("v", 1000)
	for i := range 60 {
		w := m.client(t)
		w.want("+OK\r\n", "MSET "+a+" "+value+" "+b+" "+value)
		switch i % 6 {
		case 0: // with commands on their way, and half of one
			w.raw(strings.Repeat("GET "+a+"\r\nMGET "+a+" "+b+"\r\n", 500) + "*3\r\n$3\r\nSET\r\n")
		case 1: // in a transaction
			w.want("+OK\r\n", "MULTI")
			w.want("+QUEUED\r\n", "INCR "+b)
		case 2: // blocked
			w.send("BLPOP", "nothing", "0")
		case 3: // subscribed
			w.send("SUBSCRIBE", a, b)
			w.next()
		case 4: // in a long argument
			w.raw("*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$1000000\r\n" + strings.Repeat("x", 300_000))
		case 5: // with a reset
			w.raw(strings.Repeat("SET "+b+" x\r\n", 300))
			_ = w.conn.(*net.TCPConn).SetLinger(0)
		}
		_ = w.conn.Close()
	}
	if !until(10*time.Second, func() bool {
		return m.Stats().Clients == 1 && m.proxies[0].Stats().Clients+m.proxies[1].Stats().Clients == 0 && runtime.NumGoroutine() <= before+10
	}) {
		t.Fatalf("%d clients, %+v, %+v, %d goroutines were %d", m.Stats().Clients, m.proxies[0].Stats(), m.proxies[1].Stats(), runtime.NumGoroutine(), before)
	}
	for _, addr := range m.addrs { // the server notices when it reads the end
		if direct := dial(t, addr); !until(5*time.Second, func() bool { return strings.Contains(direct.do("INFO", "clients"), "\r\nblocked_clients:0\r\n") }) {
			t.Fatal("a client that is gone still waits at its server")
		}
	}
	watch.want(":1\r\n", "RPUSH nothing x")
	watch.want(":1\r\n", "LLEN nothing") // nobody waits for it any more
}

func TestASlowClientHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	m := startMember(t, 2, func(o *Options, p *proxy.Options) { o.Limits.Output = 64 << 20 })
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	slow, other := m.client(t), m.client(t)
	value := strings.Repeat("v", 32<<10)
	slow.want("+OK\r\n", "MSET "+a+" "+value+" "+b+" "+value)
	const n = 500 // 48 MB of replies: within the limit
	sent := make(chan error, 1)
	go func() {
		_, err := slow.conn.Write([]byte(strings.Repeat("GET "+a+"\r\nMGET "+a+" "+b+"\r\n", n)))
		sent <- err
	}()
	longest := time.Duration(0)
	for i := range 500 {
		begun := time.Now()
		other.want("+OK\r\n", "MSET x"+strconv.Itoa(i)+" 1 y"+strconv.Itoa(i)+" 2")
		longest = max(longest, time.Since(begun))
	}
	if longest > 5*time.Second {
		t.Fatalf("another client waited for %s", longest)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	for range n {
		if got := slow.next(); got != bulk(value) {
			t.Fatalf("%.100q", got)
		}
		if got := slow.next(); got != "*2\r\n"+bulk(value)+bulk(value) {
			t.Fatalf("%.100q", got)
		}
	}
}

// Every reply is the one to its own command, whatever the lengths, the pipelines and the number of clients.
func TestNobodyGetsWhatIsAnothers(t *testing.T) {
	t.Parallel()
	m := startMember(t, 4)
	var wg sync.WaitGroup
	for id := range 12 {
		w := m.client(t)
		r := rand.New(rand.NewPCG(uint64(id), 1))
		wg.Go(func() {
			have := map[string][]byte{}
			for range 20 {
				var out []byte
				var want [][]byte
				for range 1 + r.IntN(60) {
					key := strconv.Itoa(id) + ":" + strconv.Itoa(r.IntN(20))
					switch r.IntN(3) {
					case 0:
						v := make([]byte, 8+r.IntN(1<<r.IntN(15)))
						binary.LittleEndian.PutUint64(v, r.Uint64())
						have[key] = v
						out = resp.AppendCommand(out, []byte("SET"), []byte(key), v)
						want = append(want, []byte("+OK\r\n"))
					case 1:
						out = resp.AppendCommand(out, "GET", key)
						want = append(want, valueOf(nil, have[key]))
					default:
						words, reply := []string{"MGET"}, resp.AppendArray(nil, 12)
						for range 12 {
							k := strconv.Itoa(id) + ":" + strconv.Itoa(r.IntN(20))
							words, reply = append(words, k), valueOf(reply, have[k])
						}
						out = resp.AppendCommand(out, words...)
						want = append(want, reply)
					}
				}
				go func() { _, _ = w.conn.Write(out) }()
				for i := range want {
					got, err := w.try(30 * time.Second)
					if err != nil || !bytes.Equal([]byte(got), want[i]) {
						t.Errorf("client %d: %v, %.60q, want %.60q", id, err, got, want[i])
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

func valueOf(dst, v []byte) []byte {
	if v == nil {
		return append(dst, "$-1\r\n"...)
	}
	return resp.AppendBulk(dst, v)
}

// A long value passes in both directions, through a pipe that holds little of it.
func TestLongValuesPass(t *testing.T) {
	t.Parallel()
	m := startMember(t, 2)
	w := m.client(t)
	value := strings.Repeat("0123456789abcdef", 2<<20/16)
	for _, key := range []string{"a", "b", "c", "d"} {
		if got := w.do("SET", key, value); got != "+OK\r\n" {
			t.Fatal(got)
		}
		if got := w.do("GET", key); got != bulk(value) {
			t.Fatalf("%d bytes", len(got))
		}
	}
	if got := w.do("MGET", "a", "b", "c", "d"); got != "*4\r\n"+strings.Repeat(bulk(value), 4) {
		t.Fatalf("%d bytes", len(got))
	}
	sub := m.client(t)
	sub.send("SUBSCRIBE", "a")
	sub.next()
	if got := w.do("PUBLISH", "a", value); got != ":1\r\n" {
		t.Fatal(got)
	}
	if got := sub.next(); got != "*3\r\n"+bulk("message")+bulk("a")+bulk(value) {
		t.Fatalf("%.100q", got)
	}
}

// An idle client costs no goroutine, and no descriptor but its own.
func TestIdleClientsAreCheap(t *testing.T) {
	m := startMember(t, 4)
	first := m.client(t)
	first.want("+OK\r\n", "MSET a 1 b 2 c 3 d 4 e 5 f 6")
	files := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(all)
	}
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur < 2000 {
		t.Skip("too few open files are allowed")
	}
	goroutines, descriptors := runtime.NumGoroutine(), files()
	const n = 400
	for range n {
		m.client(t).want("+OK\r\n", "MSET a 1 b 2 c 3 d 4 e 5 f 6")
	}
	if !until(10*time.Second, func() bool { return runtime.NumGoroutine() < goroutines+50 && files() <= descriptors+2*n+20 }) { // both ends are here
		t.Fatalf("%d goroutines were %d, %d descriptors were %d", runtime.NumGoroutine(), goroutines, files(), descriptors)
	}
}

// A client's way to a shard within the process is there at once: nothing is asked of the shard's proxy that a goroutine would have to handle, and
// CLIENT UNBLOCK still finds whom it means.
func TestTheWayToAShardCostsNoCommand(t *testing.T) {
	m := startMember(t, 3)
	w, other := m.client(t), m.client(t)
	other.want("$-1\r\n", "GET "+keyOn(3, 1, "k")) // so that this shard's numbers are not those of the front
	for shard := range 3 {
		key := keyOn(3, shard, "k")
		before := m.proxies[shard].Stats().Commands
		w.want("$-1\r\n", "GET "+key)
		if got := m.proxies[shard].Stats().Commands - before; got != 1 {
			t.Fatalf("%d commands for one GET, by shard %d", got, shard)
		}
	}
	w.send("BLPOP", keyOn(3, 1, "list"), "0")
	if !until(5*time.Second, func() bool { return other.do("CLIENT", "UNBLOCK", "1") == ":1\r\n" }) {
		t.Fatal("it was not unblocked")
	}
	if got := w.next(); got != "*-1\r\n" {
		t.Fatalf("%q", got)
	}
	w.want("$-1\r\n", "GET "+keyOn(3, 1, "k"))
}
