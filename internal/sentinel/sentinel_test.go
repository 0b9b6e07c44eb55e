// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"redoubt/internal/topo"
)

// wire is a raw connection.
type wire struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, s *Server) *wire {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &wire{t, c, bufio.NewReader(c)}
}

// ask sends an inline command and returns as many lines of its reply.
func (w *wire) ask(line string, lines int) string {
	w.t.Helper()
	if _, err := fmt.Fprintf(w.c, "%s\r\n", line); err != nil {
		w.t.Fatal(err)
	}
	return w.lines(lines)
}

func (w *wire) lines(n int) string {
	w.t.Helper()
	_ = w.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var out []string
	for range n {
		l, err := w.r.ReadString('\n')
		if err != nil {
			w.t.Fatalf("after %q: %v", out, err)
		}
		out = append(out, strings.TrimRight(l, "\r\n"))
	}
	return strings.Join(out, " ")
}

func TestProxyModeAnswersTheProxyWhateverHappens(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 3, "127.0.0.1:6101", "127.0.0.1:6102"))
	s := face(t, w, Options{ProxyAddr: "127.0.0.1:7001"})
	c := dial(t, s)
	const want = "*2 $9 127.0.0.1 $4 7001"
	if got := c.ask("SENTINEL get-master-addr-by-name mymaster", 5); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	sh := shardOf("n1", 4, "127.0.0.1:6101", "127.0.0.1:6102")
	sh.Assigned.Phase = topo.PhaseFencing
	w.set(sh)
	eventually(t, "fencing", func() bool { return s.masters[0].View.Load().Shard.Assigned.Phase == topo.PhaseFencing })
	if got := c.ask("SENTINEL get-master-addr-by-name mymaster", 5); got != want {
		t.Errorf("while fencing: got %q, want %q", got, want)
	}
	if got := c.ask("SENTINEL get-master-addr-by-name other", 1); got != "*-1" {
		t.Errorf("unknown name: %q", got)
	}
	if got := c.ask("SENTINEL master other", 1); got != "-ERR No such master with that name" {
		t.Errorf("unknown name: %q", got)
	}
}

func TestDirectModeAnswersTheLastAgreedPrimaryUntilThereIsANewOne(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 3, "127.0.0.1:6101", "127.0.0.1:6102"))
	s := faceOf(t, w, Master{Mode: ModeDirect}, Options{})
	eventually(t, "the primary to be noted", func() bool { return s.masters[0].last.Load() != nil })
	c := dial(t, s)
	addr := func() string { return c.ask("SENTINEL GET-PRIMARY-ADDR-BY-NAME mymaster", 5) }
	if got := addr(); got != "*2 $9 127.0.0.1 $4 6101" {
		t.Errorf("serving: %q", got)
	}
	sh := shardOf("n2", 4, "127.0.0.1:6101", "127.0.0.1:6102")
	sh.Assigned.Phase, sh.Assigned.Elected = topo.PhasePromoting, &topo.Elected{Node: "n2"}
	w.set(sh)
	eventually(t, "promoting", func() bool { return s.masters[0].View.Load().Shard.Assigned.Phase == topo.PhasePromoting })
	if got := addr(); got != "*2 $9 127.0.0.1 $4 6101" {
		t.Errorf("promoting: %q", got)
	}
	w.set(shardOf("n2", 4, "127.0.0.1:6101", "127.0.0.1:6102"))
	eventually(t, "the new primary", func() bool { return strings.HasSuffix(addr(), "6102") })
}

func TestGoRedisFailoverClientFollowsASwitch(t *testing.T) {
	w := newWorld()
	first, second := echoServer(t), echoServer(t)
	w.set(shardOf("n1", 1, first, second))
	s := faceOf(t, w, Master{Mode: ModeDirect}, Options{})
	c := goredis.NewFailoverClient(&goredis.FailoverOptions{MasterName: "mymaster", SentinelAddrs: []string{s.Addr()}})
	defer c.Close()
	ctx := t.Context()
	if got := c.Get(ctx, "k").Val(); got != first {
		t.Fatalf("before: the client is at %q, want %q", got, first)
	}
	eventually(t, "the client to subscribe", func() bool {
		n := 0
		s.hub.each(func(se *session) { se.mu.Lock(); n += len(se.channels); se.mu.Unlock() })
		return n >= 1
	})
	w.set(shardOf("n2", 3, first, second))
	eventually(t, "the client to follow", func() bool { return c.Get(ctx, "k").Val() == second })
}

// echoServer answers every GET with its own address, and everything else as a plain primary would.
func echoServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					var n int
					if _, err := fmt.Fscanf(r, "*%d\r\n", &n); err != nil {
						return
					}
					args := make([]string, n)
					for i := range args {
						var size int
						fmt.Fscanf(r, "$%d\r\n", &size)
						b := make([]byte, size+2)
						if _, err := r.Read(b); err != nil {
							return
						}
						args[i] = string(b[:size])
					}
					switch strings.ToUpper(args[0]) {
					case "HELLO":
						fmt.Fprint(c, "-ERR unknown command\r\n")
					case "GET":
						fmt.Fprintf(c, "$%d\r\n%s\r\n", len(ln.Addr().String()), ln.Addr())
					default:
						fmt.Fprint(c, "+OK\r\n")
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func TestSentinelClientOfGoRedisReadsAllMaps(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 7, "127.0.0.1:6101", "127.0.0.1:6102", "127.0.0.1:6103"))
	w.report(t, topo.BeatNode+"n2", topo.Sighting{Node: "n2", Health: topo.HealthUp, Role: topo.RoleReplica, LinkUp: true, RunID: "r2", Pos: topo.Position{Offset: 42}})
	w.report(t, topo.BeatNode+"n3", topo.Sighting{Node: "n3", Health: topo.HealthExited, HealthFor: topo.Duration(5 * time.Second)})
	s := faceOf(t, w, Master{Mode: ModeDirect}, Options{Voters: func() int { return 5 }})
	eventually(t, "the reports", func() bool { return len(s.masters[0].reports.Load().Nodes) == 2 })
	c := goredis.NewSentinelClient(&goredis.Options{Addr: s.Addr()})
	defer c.Close()
	ctx := t.Context()
	m, err := c.Master(ctx, "mymaster").Result()
	if err != nil || m["port"] != "6101" || m["flags"] != "master" || m["num-other-sentinels"] != "2" || m["num-slaves"] != "2" || m["config-epoch"] != "7" || m["quorum"] != "3" {
		t.Errorf("master: %v %v", m, err)
	}
	rs, err := c.Replicas(ctx, "mymaster").Result()
	if err != nil || len(rs) != 2 {
		t.Fatalf("replicas: %v %v", rs, err)
	}
	if rs[0]["flags"] != "slave" || rs[0]["slave-repl-offset"] != "42" || rs[0]["master-link-status"] != "ok" || rs[0]["runid"] != "r2" {
		t.Errorf("healthy replica: %v", rs[0])
	}
	if rs[1]["flags"] != "slave,s_down,disconnected" || rs[1]["s-down-time"] == "" || rs[1]["master-link-status"] != "err" {
		t.Errorf("dead replica: %v", rs[1])
	}
	others, err := c.Sentinels(ctx, "mymaster").Result()
	if err != nil || len(others) != 2 || others[0]["port"] != "9002" {
		t.Errorf("sentinels: %v %v", others, err)
	}
	if got, err := c.CkQuorum(ctx, "mymaster").Result(); err != nil || !strings.HasPrefix(got, "OK 3 usable Sentinels") {
		t.Errorf("ckquorum: %q %v", got, err)
	}
	if err := c.Failover(ctx, "mymaster").Err(); err == nil || !strings.Contains(err.Error(), "redoubt switchover") {
		t.Errorf("failover without a callback: %v", err)
	}
}

func TestRepliesOfAMapAreFlatInRESP2AndMapsInRESP3(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 1, "127.0.0.1:6101"))
	s := face(t, w, Options{ProxyAddr: "127.0.0.1:7001"})
	two, three := dial(t, s), dial(t, s)
	if got := two.ask("SENTINEL MASTER mymaster", 3); got != "*40 $4 name" {
		t.Errorf("RESP2: %q", got)
	}
	if got := three.ask("HELLO 3", 2); got != "%6 $6" {
		t.Errorf("HELLO 3: %q", got)
	}
	three.lines(20)
	if got := three.ask("SENTINEL MASTER mymaster", 3); got != "%20 $4 name" {
		t.Errorf("RESP3: %q", got)
	}
}

func TestASwitchPublishesSentinelsEventsInOrder(t *testing.T) {
	w := newWorld()
	addrs := []string{"127.0.0.1:6101", "127.0.0.1:6102", "127.0.0.1:6103"}
	w.set(shardOf("n1", 1, addrs...))
	s := faceOf(t, w, Master{Mode: ModeDirect}, Options{})
	eventually(t, "the primary to be noted", func() bool { return s.masters[0].last.Load() != nil })
	two, three := dial(t, s), dial(t, s)
	if got := two.ask("SUBSCRIBE +switch-master", 6); got != "*3 $9 subscribe $14 +switch-master :1" {
		t.Fatalf("subscribe: %q", got)
	}
	if got := two.ask("GET k", 1); got != "-ERR unknown command 'GET', with args beginning with: 'k' " {
		t.Errorf("unknown while subscribed: %q", got)
	}
	if got := two.ask("SENTINEL MASTERS", 1); !strings.HasPrefix(got, "-ERR Can't execute 'sentinel'") {
		t.Errorf("RESP2 is modal: %q", got)
	}
	if got := two.ask("PING", 5); got != "*2 $4 pong $0 " {
		t.Errorf("ping while subscribed: %q", got)
	}
	three.ask("HELLO 3", 22)
	if got := three.ask("PSUBSCRIBE *", 6); got != ">3 $10 psubscribe $1 * :1" {
		t.Fatalf("psubscribe: %q", got)
	}
	if got := three.ask("PING", 1); got != "+PONG" {
		t.Errorf("RESP3 is not modal: %q", got)
	}
	w.set(shardOf("n3", 3, addrs...))
	if got := two.lines(7); got != "*3 $7 message $14 +switch-master $38 mymaster 127.0.0.1 6101 127.0.0.1 6103" {
		t.Errorf("message: %q", got)
	}
	var order []string
	for len(order) == 0 || order[len(order)-1] != "+convert-to-slave" {
		if got := three.lines(3); got != ">4 $8 pmessage" {
			t.Fatalf("push: %q", got)
		}
		three.lines(2)
		three.lines(1)
		order = append(order, three.lines(1))
		three.lines(2)
	}
	want := "+sdown +odown +new-epoch +try-failover +elected-leader +failover-state-select-slave +selected-slave " +
		"+failover-state-send-slaveof-noone +failover-state-wait-promotion +promoted-slave +failover-state-reconf-slaves " +
		"+slave-reconf-sent +slave-reconf-inprog +slave-reconf-done +replica-reconf-done +failover-end +switch-master +slave +slave -odown -sdown +convert-to-slave"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("events\n got %s\nwant %s", got, want)
	}
}

func TestASwitchIsSilentForClientsOfTheProxyMode(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 1, "127.0.0.1:6101", "127.0.0.1:6102"))
	s := face(t, w, Options{ProxyAddr: "127.0.0.1:7001"})
	eventually(t, "the primary to be noted", func() bool { return s.masters[0].last.Load() != nil })
	c := dial(t, s)
	c.ask("PSUBSCRIBE *", 6)
	w.set(shardOf("n2", 2, "127.0.0.1:6101", "127.0.0.1:6102"))
	if got := c.lines(9); got != "*4 $8 pmessage $1 * $10 +new-epoch $1 2" {
		t.Errorf("event: %q", got)
	}
	if got := c.ask("PING", 5); got != "*2 $4 pong $0 " {
		t.Errorf("something else was published: %q", got)
	}
}

func TestAPasswordIsDemanded(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 1, "127.0.0.1:6101"))
	s := face(t, w, Options{Password: "secret", ProxyAddr: "127.0.0.1:7001"})
	c := dial(t, s)
	for _, step := range []struct{ ask, want string }{
		{"PING", "-NOAUTH Authentication required."},
		{"HELLO 3", "-NOAUTH HELLO must be called"},
		{"AUTH wrong", "-WRONGPASS"},
		{"AUTH default secret", "+OK"},
		{"PING", "+PONG"},
		{"RESET", "+RESET"},
		{"PING", "-NOAUTH"},
		{"HELLO 2 AUTH default secret SETNAME me", "*12"},
	} {
		if got := c.ask(step.ask, 1); !strings.HasPrefix(got, step.want) {
			t.Errorf("%s: %q, want %q", step.ask, got, step.want)
		}
	}
}

func TestAFailoverOrderIsHandedIn(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 1, "127.0.0.1:6101"))
	answers := make(chan error, 2)
	answers <- nil
	answers <- errors.New("a switchover is pending")
	s := faceOf(t, w, Master{Failover: func(context.Context) error { return <-answers }}, Options{ProxyAddr: "127.0.0.1:7001"})
	c := dial(t, s)
	if got := c.ask("SENTINEL FAILOVER mymaster", 1); got != "+OK" {
		t.Errorf("accepted: %q", got)
	}
	if got := c.ask("SENTINEL FAILOVER mymaster", 1); got != "-INPROG a switchover is pending" {
		t.Errorf("refused: %q", got)
	}
}

func TestASubscriberThatTakesNothingIsCut(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 1, "127.0.0.1:6101"))
	s := face(t, w, Options{ProxyAddr: "127.0.0.1:7001"})
	slow, good := dial(t, s), dial(t, s)
	slow.ask("SUBSCRIBE flood", 6)
	good.ask("SUBSCRIBE calm", 6)
	big := strings.Repeat("x", 64<<10)
	eventually(t, "the slow subscriber to be cut", func() bool {
		s.hub.publish(s, func(tell) []message { return []message{{"flood", big}} })
		return s.hub.count() == 1
	})
	s.hub.publish(s, func(tell) []message { return []message{{"calm", "here"}} })
	if got := good.lines(7); got != "*3 $7 message $4 calm $4 here" {
		t.Errorf("the other subscriber: %q", got)
	}
}

func TestOtherCommandsAnswerAsASentinelDoes(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 1, "127.0.0.1:6101"))
	s := face(t, w, Options{ProxyAddr: "127.0.0.1:7001"})
	c := dial(t, s)
	for _, step := range []struct {
		ask   string
		lines int
		want  string
	}{
		{"ROLE", 6, "*2 $8 sentinel *1 $8 mymaster"},
		{"SENTINEL IS-MASTER-DOWN-BY-ADDR 127.0.0.1 7001 0 *", 5, "*3 :0 $1 * :0"},
		{"SENTINEL IS-PRIMARY-DOWN-BY-ADDR 127.0.0.1 7001 0 *", 5, "*3 :0 $1 * :0"},
		{"CLIENT SETNAME me", 1, "+OK"},
		{"CLIENT GETNAME", 2, "$2 me"},
		{"CLIENT SETINFO LIB-NAME x", 1, "+OK"},
		{"CLIENT MAINT_NOTIFICATIONS ON", 1, "-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP."},
		{"COMMAND DOCS", 1, "*0"},
		{"UNSUBSCRIBE", 5, "*3 $11 unsubscribe $-1 :0"},
		{"SELECT 0", 1, "-ERR unknown command 'SELECT', with args beginning with: '0' "},
		{"SENTINEL MONITOR x 127.0.0.1 1 1", 1, "-ERR another master is another deployment, with members of its own: `redoubt adopt --sentinel` makes one of what Sentinels watch"},
		{"SENTINEL NONSENSE", 1, "-ERR unknown subcommand 'NONSENSE'. Try SENTINEL HELP."},
		{"SENTINEL", 1, "-ERR wrong number of arguments for 'sentinel' command"},
		{"PUBLISH other x", 1, "-ERR Only HELLO messages are accepted by Sentinel instances."},
		{"QUIT", 1, "+OK"},
	} {
		if got := c.ask(step.ask, step.lines); got != step.want {
			t.Errorf("%s: %q, want %q", step.ask, got, step.want)
		}
	}
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("QUIT left the connection open")
	}
	info := goredis.NewClient(&goredis.Options{Addr: s.Addr()})
	defer info.Close()
	text, err := info.Info(t.Context(), "server", "sentinel").Result()
	if err != nil || !strings.Contains(text, "redis_mode:sentinel") || !strings.Contains(text, "master0:name=mymaster,status=ok,address=127.0.0.1:7001,slaves=3,sentinels=3") {
		t.Errorf("INFO: %q %v", text, err)
	}
}

func TestPatternsMatchAsTheServersDo(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "+switch-master", true}, {"[-+]sdown", "-sdown", true}, {"[-+]sdown", "xsdown", false}, {"[^-]sdown", "+sdown", true},
		{"+s?own", "+sdown", true}, {"+slave*", "+slave-reconf-done", true}, {"switch-master", "+switch-master", false},
		{`\*`, "*", true}, {`\*`, "x", false}, {"[a-c]", "b", true}, {"[", "", false}, {"", "", true}, {"**a", "bca", true},
	} {
		if got := match(c.pattern, c.s); got != c.want {
			t.Errorf("match(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

// A message is matched with the patterns of every subscriber, so no pattern may take long.
func TestNoPatternTakesLong(t *testing.T) {
	pattern, began := strings.Repeat("*?", 14)+"*[!]", time.Now()
	if match(pattern, strings.Repeat("a", 34)) {
		t.Error("matched")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("one pattern took %s", took)
	}
}
