// SPDX-License-Identifier: Apache-2.0

package nameserver

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"redoubt/internal/clock"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// rig is a face over a store in memory.
type rig struct {
	t       *testing.T
	cluster *memstore.Cluster
	store   *memstore.Store
	server  *Server
}

func shard(id string) topo.Shard {
	return topo.Shard{
		Format: topo.Format, ID: id,
		Spec: topo.Spec{
			Deployment: "mymaster", Durability: topo.Quorum, AckReplicas: 1, Timing: topo.LANTiming(),
			Nodes: []topo.Node{{ID: "N_2", Addr: "10.0.0.2:6102"}, {ID: "n1", Addr: "10.0.0.1:6101"}, {ID: "n3", Addr: "[fd00::3]:6103"}},
		},
		Assigned: topo.Assigned{Epoch: 4, Phase: topo.PhaseServing, Primary: "n1", RunID: "r1", History: []topo.HistoryEntry{{Epoch: 4, ReplID: "aa", Node: "n1"}}},
	}
}

func newRig(t *testing.T, shards ...string) *rig {
	t.Helper()
	r := &rig{t: t, cluster: memstore.New(nil, "m1", "m2", "m3")}
	r.store = r.cluster.Member("m1")
	var parts []view.Part
	for _, id := range shards {
		v := view.New(r.store, clock.Real{}, topo.KeyShard+id, slog.New(slog.DiscardHandler))
		parts = append(parts, view.Part{ID: id, Name: strings.TrimPrefix(id, "mymaster-"), View: v})
		run(t, v.Run)
	}
	b, err := view.NewBoard(view.BoardOptions{Deployment: "mymaster", Mode: "single", Parts: parts, Beats: r.store, Clock: clock.Real{}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, b.Run)
	for range 5 { // the kernel's choice for TCP may be somebody's for UDP
		if r.server, err = listen(b); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, r.server.Run)
	if _, err := r.store.Campaign(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func listen(b *view.Board) (*Server, error) {
	return New(Options{Listen: "127.0.0.1:0", Zone: "Redis.Example.com", TTL: time.Second, Host: "10.0.0.1", Member: "m1", Board: b, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)})
}

// run runs a part until the test ends.
func run(t *testing.T, part func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = part(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func (r *rig) set(s topo.Shard) {
	r.t.Helper()
	key := topo.KeyShard + s.ID
	doc, _ := r.cluster.Doc(key)
	if _, err := r.store.Swap(r.t.Context(), key, s.Encode(), doc.Rev); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) report(name string, v any) {
	r.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.store.Send(r.t.Context(), name, b, time.Minute); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) ask(transport, name string, kind uint16, also ...func(*dns.Msg)) *dns.Msg {
	r.t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, kind)
	for _, f := range also {
		f(q)
	}
	c := &dns.Client{Net: transport, Timeout: 5 * time.Second}
	m, _, err := c.ExchangeContext(r.t.Context(), q, r.server.Addr())
	if err != nil {
		r.t.Fatalf("%s %s over %s: %v", name, dns.TypeToString[kind], transport, err)
	}
	return m
}

// short is what an answer says, in a few words.
func short(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		switch x := rr.(type) {
		case *dns.A:
			out = append(out, x.A.String())
		case *dns.AAAA:
			out = append(out, x.AAAA.String())
		case *dns.SRV:
			out = append(out, fmt.Sprintf("%s:%d", x.Target, x.Port))
		default:
			out = append(out, dns.TypeToString[rr.Header().Rrtype])
		}
	}
	slices.Sort(out)
	text := dns.RcodeToString[m.Rcode]
	if len(m.Ns) > 0 {
		text += " " + dns.TypeToString[m.Ns[0].Header().Rrtype]
	}
	return strings.TrimSpace(text + " " + strings.Join(out, " "))
}

// await asks until the answer is the wanted one, over both transports.
func (r *rig) await(name string, kind uint16, want string) {
	r.t.Helper()
	for _, transport := range []string{"udp", "tcp"} {
		end := time.Now().Add(10 * time.Second)
		for {
			m := r.ask(transport, name, kind)
			if got := short(m); got == want {
				break
			} else if time.Now().After(end) {
				r.t.Fatalf("%s %s over %s: %s, want %s\n%v", name, dns.TypeToString[kind], transport, got, want, m)
			}
		}
	}
}

func (r *rig) reports() {
	r.report(topo.BeatNode+"N_2", topo.Sighting{Node: "N_2", Health: topo.HealthUp, Role: topo.RoleReplica, Whole: true, LinkUp: true, InSync: 4})
	r.report(topo.BeatNode+"n3", topo.Sighting{Node: "n3", Health: topo.HealthUp, Role: topo.RoleReplica, Whole: true, LinkUp: true, InSync: 4})
	for i := range 3 {
		host := fmt.Sprintf("10.0.0.%d", i+1)
		r.report(fmt.Sprint(topo.BeatMember, "m", i+1), topo.MemberReport{ID: fmt.Sprint("m", i+1), ProxyAddr: host + ":6379", ReadonlyAddr: host + ":6389", SentinelAddr: host + ":26379", DNSAddr: host + ":53"})
	}
}

func TestNamesOfOneShard(t *testing.T) {
	r := newRig(t, "mymaster-0")
	r.await("primary.mymaster.redis.example.com.", dns.TypeA, "SERVFAIL") // nothing is known yet
	r.set(shard("mymaster-0"))
	r.reports()
	const zone, none, unknown = "redis.example.com.", "NOERROR SOA", "NXDOMAIN SOA"
	proxies := "NOERROR 10.0.0.1 10.0.0.2 10.0.0.3"
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"primary.mymaster.", dns.TypeA, "NOERROR 10.0.0.1"},
		{"PRIMARY.MyMaster.", dns.TypeA, "NOERROR 10.0.0.1"},
		{"master.mymaster.", dns.TypeA, "NOERROR 10.0.0.1"},
		{"primary.mymaster.", dns.TypeAAAA, none},
		{"primary.mymaster.", dns.TypeTXT, none},
		{"primary.mymaster.", dns.TypeSRV, "NOERROR n1.node.mymaster.redis.example.com.:6101"},
		{"_redis._tcp.primary.mymaster.", dns.TypeSRV, "NOERROR n1.node.mymaster.redis.example.com.:6101"},
		{"_mymaster._primary.", dns.TypeSRV, "NOERROR n1.node.mymaster.redis.example.com.:6101"},
		{"_mymaster._tcp.", dns.TypeSRV, "NOERROR m1.member.mymaster.redis.example.com.:6379 m2.member.mymaster.redis.example.com.:6379 m3.member.mymaster.redis.example.com.:6379"},
		{"_redis._tcp.primary.mymaster.", dns.TypeA, none},
		{"_tcp.primary.mymaster.", dns.TypeSRV, none},
		{"_primary.", dns.TypeSRV, none},
		{"primary.0.mymaster.", dns.TypeA, "NOERROR 10.0.0.1"},
		{"primary.mymaster-0.mymaster.", dns.TypeA, "NOERROR 10.0.0.1"},
		{"0.mymaster.", dns.TypeA, none},
		{"node.mymaster.", dns.TypeA, none},
		{"replicas.mymaster.", dns.TypeA, "NOERROR 10.0.0.2"},
		{"replicas.mymaster.", dns.TypeAAAA, "NOERROR fd00::3"},
		{"replicas.mymaster.", dns.TypeSRV, "NOERROR n-2.node.mymaster.redis.example.com.:6102 n3.node.mymaster.redis.example.com.:6103"},
		{"n-2.node.mymaster.", dns.TypeA, "NOERROR 10.0.0.2"},
		{"mymaster.", dns.TypeA, proxies},
		{"proxies.mymaster.", dns.TypeA, proxies},
		{"_redis._tcp.readonly.mymaster.", dns.TypeSRV, "NOERROR m1.member.mymaster.redis.example.com.:6389 m2.member.mymaster.redis.example.com.:6389 m3.member.mymaster.redis.example.com.:6389"},
		{"sentinels.mymaster.", dns.TypeA, proxies},
		{"m2.member.mymaster.", dns.TypeA, "NOERROR 10.0.0.2"},
		{"ns.", dns.TypeA, proxies},
		{"", dns.TypeSOA, "NOERROR SOA"},
		{"", dns.TypeNS, "NOERROR NS"},
		{"", dns.TypeA, none},
		{"primary.other.", dns.TypeA, unknown},
		{"primary.s9.mymaster.", dns.TypeA, unknown},
		{"a.b.c.mymaster.", dns.TypeA, unknown},
		{"_other._primary.", dns.TypeSRV, unknown},
		{"_mymaster._nothing.", dns.TypeSRV, unknown},
		{"n9.node.mymaster.", dns.TypeA, unknown},
		{"primary.mymaster.", dns.TypeANY, "NOERROR HINFO"},
		{"primary.mymaster.", dns.TypeAXFR, "REFUSED"},
	} {
		if c.kind == dns.TypeAXFR {
			if got := short(r.ask("udp", c.name+zone, c.kind)); got != c.want {
				t.Errorf("%s AXFR: %s", c.name, got)
			}
			continue
		}
		r.await(c.name+zone, c.kind, c.want)
	}
	for _, name := range []string{"example.com.", "redis.example.org.", ".", "xredis.example.com."} {
		m := r.ask("udp", name, dns.TypeA)
		if m.Rcode != dns.RcodeRefused || m.Authoritative || len(m.Ns) > 0 {
			t.Errorf("%s: %v", name, m)
		}
	}
	m := r.ask("udp", "primary.mymaster."+zone, dns.TypeA)
	if !m.Authoritative || m.RecursionAvailable || m.Answer[0].Header().Ttl != 1 {
		t.Errorf("%v", m)
	}
	if m := r.ask("udp", "replicas.mymaster."+zone, dns.TypeSRV); len(m.Extra) != 2 {
		t.Errorf("SRV without the addresses of its targets: %v", m)
	}
}

func TestBetweenTwoPrimariesThereIsNone(t *testing.T) {
	r := newRig(t, "mymaster-0")
	const name = "primary.mymaster.redis.example.com."
	s := shard("mymaster-0")
	r.set(s)
	r.await(name, dns.TypeA, "NOERROR 10.0.0.1")
	before := r.ask("udp", "redis.example.com.", dns.TypeSOA).Answer[0].(*dns.SOA).Serial
	for _, phase := range []topo.Phase{topo.PhaseDraining, topo.PhaseFencing, topo.PhasePromoting} {
		s.Assigned.Epoch, s.Assigned.Phase = s.Assigned.Epoch+1, phase
		r.set(s)
		r.await(name, dns.TypeA, "NOERROR SOA")
	}
	s.Assigned.Epoch, s.Assigned.Phase, s.Assigned.Primary, s.Assigned.RunID = 8, topo.PhaseServing, "N_2", "r2"
	r.set(s)
	r.await(name, dns.TypeA, "NOERROR 10.0.0.2")
	if after := r.ask("udp", "redis.example.com.", dns.TypeSOA).Answer[0].(*dns.SOA).Serial; after <= before {
		t.Errorf("serial %d, then %d", before, after)
	}
	r.cluster.Cut("m1") // the lease ends without a word
	r.await(name, dns.TypeA, "NOERROR SOA")
	r.await("n-2.node.mymaster.redis.example.com.", dns.TypeA, "NOERROR 10.0.0.2")
	r.cluster.Heal("m1")
	r.await(name, dns.TypeA, "NOERROR 10.0.0.2")
}

func TestEveryShardHasItsNames(t *testing.T) {
	r := newRig(t, "mymaster-s1", "mymaster-s2")
	one, two := shard("mymaster-s1"), shard("mymaster-s2")
	two.Assigned.Primary = "N_2"
	r.set(one)
	r.set(two)
	r.await("primary.s1.mymaster.redis.example.com.", dns.TypeA, "NOERROR 10.0.0.1")
	r.await("primary.s2.mymaster.redis.example.com.", dns.TypeA, "NOERROR 10.0.0.2")
	r.await("primary.mymaster.redis.example.com.", dns.TypeA, "NOERROR 10.0.0.1 10.0.0.2")
}

func TestLargeAnswersAndOddQuestions(t *testing.T) {
	r := newRig(t, "mymaster-0")
	s := shard("mymaster-0")
	s.Spec.Nodes = nil
	for i := range 60 {
		s.Spec.Nodes = append(s.Spec.Nodes, topo.Node{ID: topo.NodeID(fmt.Sprintf("node-with-a-rather-long-name-%02d", i)), Addr: fmt.Sprintf("10.0.1.%d:6379", i)})
		r.report(topo.BeatNode+string(s.Spec.Nodes[i].ID), topo.Sighting{Node: s.Spec.Nodes[i].ID, Health: topo.HealthUp, Role: topo.RoleReplica, Whole: true, LinkUp: true, InSync: 4})
	}
	s.Assigned.Primary = s.Spec.Nodes[0].ID
	r.set(s)
	const name = "replicas.mymaster.redis.example.com."
	for end := time.Now().Add(10 * time.Second); len(r.ask("tcp", name, dns.TypeSRV).Answer) != 59; {
		if time.Now().After(end) {
			t.Fatalf("%v", r.ask("tcp", name, dns.TypeSRV))
		}
	}
	edns := func(size uint16) func(*dns.Msg) { return func(q *dns.Msg) { q.SetEdns0(size, false) } }
	for _, c := range []struct {
		also []func(*dns.Msg)
		most int
	}{{nil, dns.MinMsgSize}, {[]func(*dns.Msg){edns(4096)}, datagramMax}, {[]func(*dns.Msg){edns(700)}, 700}} {
		m := r.ask("udp", name, dns.TypeSRV, c.also...)
		m.Compress = true // as it was sent
		if !m.Truncated || m.Len() > c.most || len(m.Answer) == 0 && c.most > 600 {
			t.Errorf("%d bytes of at most %d, %d records, truncated %v", m.Len(), c.most, len(m.Answer), m.Truncated)
		}
		if (m.IsEdns0() != nil) != (c.also != nil) {
			t.Errorf("EDNS in the answer: %v", m.IsEdns0())
		}
	}
	m := r.ask("udp", name, dns.TypeA, edns(1232), func(q *dns.Msg) { q.IsEdns0().SetVersion(1) })
	if m.Rcode != dns.RcodeBadVers || len(m.Answer) > 0 || len(m.Extra) != 1 {
		t.Errorf("another version of EDNS: %v", m)
	}
	if m := r.ask("udp", name, dns.TypeA, func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }); m.Rcode != dns.RcodeNotImplemented {
		t.Errorf("an update: %v", m)
	}
	if m := r.ask("udp", "version.bind.", dns.TypeTXT, func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }); m.Rcode != dns.RcodeRefused {
		t.Errorf("class CH: %v", m)
	}
	conn, err := net.Dial("udp", r.server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, junk := range [][]byte{{}, {1}, []byte(strings.Repeat("x", 600)), append(make([]byte, 12), 0xc0, 0x0c, 0, 1, 0, 1)} {
		if _, err := conn.Write(junk); err != nil {
			t.Fatal(err)
		}
	}
	r.await("n9.node.mymaster.redis.example.com.", dns.TypeA, "NXDOMAIN SOA") // it still answers
	if answers, empty, refused := r.server.Stats(); answers == 0 || empty == 0 || refused == 0 {
		t.Errorf("counted %d %d %d", answers, empty, refused)
	}
}

func TestHostsByName(t *testing.T) {
	h := newHosts()
	h.look(t.Context(), []string{"localhost", "10.0.0.9", ""})
	if ips := h.of("localhost"); len(ips) == 0 || !ips[0].IsLoopback() {
		t.Errorf("localhost is %v", ips)
	}
	if ips := h.of("10.0.0.9"); len(ips) != 1 || ips[0].String() != "10.0.0.9" {
		t.Errorf("an address is %v", ips)
	}
	h.look(t.Context(), nil)
	if ips := h.of("localhost"); len(ips) != 0 {
		t.Errorf("localhost was not forgotten: %v", ips)
	}
}

// FuzzAnswer: no question makes the face fail, and every answer can be packed.
func FuzzAnswer(f *testing.F) {
	q := new(dns.Msg)
	q.SetQuestion("primary.mymaster.redis.example.com.", dns.TypeSRV)
	b, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	s := &Server{o: Options{TTL: time.Second, Host: "10.0.0.1"}, zone: "redis.example.com.", hosts: newHosts()}
	v := view.New(nil, clock.Real{}, "k", slog.New(slog.DiscardHandler))
	if s.o.Board, err = view.NewBoard(view.BoardOptions{Deployment: "mymaster", Parts: []view.Part{{ID: "mymaster-0", View: v}}, Beats: memstore.New(nil, "m1").Member("m1"), Clock: clock.Real{}}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		if _, err := s.answer(q).Pack(); err != nil {
			t.Fatalf("%v: %v", q, err)
		}
	})
}
