// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
	"redoubt/test/ports"
)

// TestAClosedPrimaryStandsStill: keys expire, and replicas that drain are attached, and its offset is final nevertheless.
func TestAClosedPrimaryStandsStill(t *testing.T) {
	t.Parallel()
	f := cluster(t, 1, 2, nil)
	p, r := f.shards[0][0], f.shards[0][1]
	c := client(t, p.addr, "")
	for i := range 200 {
		must(t, c, "SET", fmt.Sprint(i), "v", "PX", fmt.Sprint(300+i*5))
	}
	blocked, subscribed := client(t, p.addr, ""), client(t, p.addr, "")
	if _, err := blocked.send([]string{"BLPOP", "nothing", "0"}); err != nil {
		t.Fatal(err)
	}
	must(t, subscribed, "SUBSCRIBE", "ch")
	if err := p.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []*conn{c, blocked, subscribed} {
		select {
		case <-cut.gone:
		case <-time.After(2 * time.Second):
			t.Fatal("a client was not cut")
		}
	}
	if !refusesTCP(p) {
		t.Fatal("a fenced primary can be connected to")
	}
	final := see(t, p, "the final position", func(o redis.Observation) bool { return o.Frozen })
	o := stays(t, p, 2200*time.Millisecond, "where it was fenced", func(o redis.Observation) bool { return o.Frozen && o.Whole && o.Pos == final.Pos })
	if len(o.Replicas) != 1 {
		t.Errorf("attached are %v: a replica has to get the rest of the stream", o.Replicas)
	}
	see(t, r, "all of the stream", func(o redis.Observation) bool { return o.Pos.Offset == final.Pos.Offset && o.LinkUp })

	// The same process goes on at the same position, and lets go of what is over.
	next := redis.Credentials{Secret: "next"}
	pos, err := p.Promote(within(t, 5*time.Second), electedOf(final), next)
	if err != nil || pos.ReplID != final.Pos.ReplID {
		t.Fatalf("promoted again from %+v to %+v: %v", final.Pos, pos, err)
	}
	see(t, r, "the end of its link", func(o redis.Observation) bool { return !o.LinkUp })
	stays(t, r, 1200*time.Millisecond, "cut, with the login of before", func(o redis.Observation) bool { return !o.LinkUp })
	if err := r.Follow(within(t, time.Second), p.addr, next); err != nil {
		t.Fatal(err)
	}
	see(t, p, "the expiry go on", func(o redis.Observation) bool { return o.Keys == 0 && o.Role == topo.RolePrimary })
	caughtUp(t, r, p)
}

// TestAPrimaryThatIsDemotedByGossipKeepsItsData: nobody fenced it, so it has writes that its successor does not. It learns of that
// one by gossip, and waits with its data until it is told whom to follow.
func TestAPrimaryThatIsDemotedByGossipKeepsItsData(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 3, nil)
	p, r, third := f.shards[0][0], f.shards[0][1], f.shards[0][2]
	put(t, p, f.keys[0], "both")
	caughtUp(t, r, p)
	caughtUp(t, third, p)
	for _, n := range []*Node{r, third} {
		if err := n.Freeze(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	put(t, p, f.keys[0], "lost")
	put(t, p, "{"+f.keys[0]+"}2", "lost")
	crown(t, r)
	put(t, r, "{"+f.keys[0]+"}3", "new")
	stays(t, third, 300*time.Millisecond, "frozen", func(o redis.Observation) bool { return o.Frozen && o.Keys == 1 })
	see(t, p, "the demotion", func(o redis.Observation) bool { return o.Frozen })
	if o := stays(t, p, 1200*time.Millisecond, "a frozen replica with its data", func(o redis.Observation) bool { return o.Frozen && o.Role == topo.RoleReplica && o.Keys == 2 }); !o.Whole {
		t.Errorf("demoted: %+v", o)
	}
	for _, n := range []*Node{third, p} {
		join(t, n, r)
		caughtUp(t, n, r)
		c := client(t, n.addr, "")
		must(t, c, "READONLY")
		if got := must(t, c, "GET", f.keys[0]).text; got != "both" {
			t.Errorf("%s has %q", n.addr, got)
		}
	}
}

// TestAPrimaryThatGossipDemotedCutsItsClients: a connection of before would otherwise outlive the tenure, and a WAIT that is late on it
// would be about data that the server has thrown away (SAFETY A5).
func TestAPrimaryThatGossipDemotedCutsItsClients(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 2, nil)
	p, r := f.shards[0][0], f.shards[0][1]
	put(t, p, f.keys[0], "both")
	caughtUp(t, r, p)
	c := client(t, p.addr, "")
	if err := r.Freeze(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	must(t, c, "SET", f.keys[0], "lost")
	crown(t, r)
	see(t, p, "the demotion", func(o redis.Observation) bool { return o.Frozen })
	must(t, c, "PING") // nobody has cut it yet
	join(t, p, r)
	select {
	case <-c.gone:
	case <-time.After(2 * time.Second):
		t.Error("the connection of the earlier tenure lives on")
	}
	caughtUp(t, p, r)
}

// TestAPrimaryThatHangsIsKilledNotContinued: it would answer what waits in its sockets.
func TestAPrimaryThatHangsIsKilledNotContinued(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 2, nil)
	p, r := f.shards[0][0], f.shards[0][1]
	put(t, p, f.keys[0], "1")
	caughtUp(t, r, p)
	see(t, p, "the primary", isUp)
	c := client(t, p.addr, "")
	stop(t, p)
	write, err := c.send([]string{"SET", f.keys[0], "late"})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Freeze(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	crown(t, r)
	if err := p.Fence(within(t, 500*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if o := p.Observe(within(t, time.Second)); o.Health != topo.HealthExited {
		t.Fatalf("a hung primary after its fence: %+v", o)
	}
	if reps, err := write.wait(within(t, time.Second)); err == nil {
		t.Fatalf("the write in its socket was answered: %+v", reps)
	}
	if err := p.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	join(t, p, r)
}

func TestAViewThatWouldStealSlotsIsNotPromoted(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 2, nil)
	p, r := f.shards[0][0], f.shards[0][1]
	mine, theirs := p.cluster.ShardID, f.shards[1][0].cluster.ShardID
	agreed := f.agreed().Slots
	moved := func(by int) map[string][][2]int { // what the store would say, had slots moved behind this node's back
		return map[string][][2]int{mine: {{0, agreed[mine][0][1] + by}}, theirs: {{agreed[theirs][0][0] + by, 16383}}}
	}
	set := func(s map[string][][2]int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.layout.Slots = s
	}
	if err := r.Freeze(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := p.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	for by, word := range map[int]string{-10: "not its shard's", 10: "belong to another node"} {
		for _, n := range []*Node{r, p} {
			set(moved(by))
			before := see(t, n, "a frozen server", func(o redis.Observation) bool { return o.Frozen })
			_, err := n.Promote(within(t, time.Second), electedOf(before), tenure())
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Fatalf("%s, %d slots: %v", n.addr, by, err)
			}
			if o := see(t, n, "an answer", isUp); !o.Frozen || o.Pos != before.Pos {
				t.Fatalf("a refused promotion changed %+v into %+v", before, o)
			}
		}
	}
	set(agreed)
	crown(t, r)
	put(t, r, f.keys[0], "1")
}

func TestOnlyTheTenuresCredentialsReplicateInACluster(t *testing.T) {
	t.Parallel()
	f := cluster(t, 1, 2, nil)
	p, r := f.shards[0][0], f.shards[0][1]
	put(t, p, f.keys[0], "1")
	caughtUp(t, r, p)
	other := redis.Credentials{Secret: "another epoch"}
	for _, cred := range []redis.Credentials{other, {}} {
		if err := r.Freeze(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := r.Follow(within(t, time.Second), p.addr, cred); err != nil {
			t.Fatal(err)
		}
		stays(t, r, 300*time.Millisecond, "refused", func(o redis.Observation) bool { return !o.LinkUp && o.Keys == 1 })
	}
	if err := r.Follow(within(t, time.Second), p.addr, other); err != nil {
		t.Fatal(err)
	}
	if err := p.Configure(within(t, time.Second), redis.Settings{Admit: other}); err != nil {
		t.Fatal(err)
	}
	see(t, r, "the replica admitted", func(o redis.Observation) bool { return o.LinkUp })
	if err := r.Follow(within(t, time.Second), "127.0.0.1:1", tenure()); err == nil {
		t.Fatal("followed somebody whom nobody knows")
	}
	c := client(t, p.addr, "")
	for _, words := range []string{"FAILOVER TAKEOVER", "REPLICATE " + r.cluster.ID, "RESET HARD", "DELSLOTS 1", "SETSLOT 1 NODE " + r.cluster.ID} {
		if err := run(t, c, append([]string{"CLUSTER"}, strings.Fields(words)...)...).err(); !isCode(err, "NOPERM") {
			t.Errorf("a client may say CLUSTER %s: %v", words, err)
		}
	}
	if !strings.Contains(must(t, c, "CLUSTER", "NODES").text, r.cluster.ID) {
		t.Error("a client cannot ask for the nodes")
	}
}

// TestAFreezeEndsWhatIsBeingNegotiated: a sync that is under way, and a handshake, carry the login of before. Newer versions of Valkey
// do not begin anew with the same primary: there a node is frozen when they are over, and is not frozen until then.
func TestAFreezeEndsWhatIsBeingNegotiated(t *testing.T) {
	t.Parallel()
	f := cluster(t, 1, 3, nil)
	p, r, third := f.shards[0][0], f.shards[0][1], f.shards[0][2]
	for i := range 100 {
		put(t, p, fmt.Sprint(i), strings.Repeat("x", 1<<10))
	}
	caughtUp(t, r, p)
	for state, slow := range map[string][]string{
		"handshake": {"repl-diskless-sync-delay", "2", "rdb-key-save-delay", "0"},     // it waits for the answer to PSYNC
		"sync":      {"repl-diskless-sync-delay", "0", "rdb-key-save-delay", "20000"}, // two seconds for all keys
	} {
		crash(t, third, func(dir string) { _ = os.Remove(filepath.Join(dir, "dump.rdb")) }) // it knows nothing and needs a full sync
		see(t, third, "an answer", isUp)
		must(t, client(t, p.addr, ""), append([]string{"CONFIG", "SET"}, slow...)...)
		if err := third.Follow(within(t, time.Second), p.addr, tenure()); err != nil {
			t.Fatal(err)
		}
		see(t, third, "the "+state+" under way", func(o redis.Observation) bool {
			return !o.Frozen && inside(t, third, "ROLE").items[3].text == state
		})
		keeps := strings.HasPrefix(third.Observe(within(t, time.Second)).Version, "valkey")
		ctx := within(t, 2*time.Second)
		if keeps {
			ctx = within(t, 10*time.Second)
		}
		for err := third.Freeze(ctx); err != nil; err = third.Freeze(ctx) {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
		if o := stays(t, third, 2500*time.Millisecond, "frozen", func(o redis.Observation) bool { return o.Frozen && !o.LinkUp }); o.Keys != 0 && !keeps {
			t.Errorf("%s: it got data after its freeze: %+v", state, o)
		}
	}
	must(t, client(t, p.addr, ""), "CONFIG", "SET", "rdb-key-save-delay", "0")
	join(t, third, p)
	caughtUp(t, third, p)
}

func TestSettingsOfAMemberThatLieAreReportedAndConfigured(t *testing.T) {
	t.Parallel()
	f := cluster(t, 1, 2, nil)
	p, r := f.shards[0][0], f.shards[0][1]
	inside(t, r, "CONFIG", "SET", "cluster-replica-no-failover", "no")
	see(t, r, "the lie", func(o redis.Observation) bool {
		return slices.Contains(o.Settings, "cluster-replica-no-failover is no, must be yes")
	})
	for range 2 {
		if err := r.Configure(within(t, time.Second), redis.Settings{}); err != nil {
			t.Fatal(err)
		}
	}
	see(t, r, "the truth", func(o redis.Observation) bool { return len(o.Settings) == 0 })
	if err := p.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := p.Configure(within(t, time.Second), redis.Settings{}); err != nil {
		t.Fatal(err)
	}
	if got := inside(t, p, "CONFIG", "GET", minReplicas).pairs()[minReplicas]; got != shutReplicas {
		t.Errorf("a closed primary was configured to take writes with %s replicas", got)
	}
	if o := see(t, p, "an answer", isUp); !o.Frozen {
		t.Errorf("configured: %+v", o)
	}
}

// TestAPrimaryThatIsOpenedByHandIsJudged: a process that nobody promoted may not serve.
func TestAPrimaryThatIsOpenedByHandIsJudged(t *testing.T) {
	t.Parallel()
	f := plan(t, 1, 1)
	n := f.start(t, f.layout.Nodes[0])
	see(t, n, "a frozen server", func(o redis.Observation) bool { return o.Frozen })
	inside(t, n, "CONFIG", "SET", "port", fmt.Sprint(portOf(n.addr)))
	see(t, n, "the open primary", func(o redis.Observation) bool { return !o.Frozen && o.Role == topo.RolePrimary })
	n.mu.Lock()
	n.knownRun = strings.Repeat("1", 40)
	n.mu.Unlock()
	o := see(t, n, "the judgement", func(o redis.Observation) bool { return o.Frozen })
	if len(o.Problems) != 1 || !strings.HasPrefix(o.Problems[0], "boot-not-frozen: ") || !refusesTCP(n) {
		t.Fatalf("judged: %+v", o)
	}
}

func TestTheNextAgentAdoptsAMember(t *testing.T) {
	t.Parallel()
	f := cluster(t, 1, 2, nil)
	p, r := f.shards[0][0], f.shards[0][1]
	put(t, p, f.keys[0], "1")
	caughtUp(t, r, p)
	run := see(t, p, "the primary", isUp).RunID
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	n := f.start(t, f.layout.Nodes[0])
	if o := see(t, n, "the adopted primary", isUp); o.RunID != run || o.Role != topo.RolePrimary || len(o.Problems) > 0 {
		t.Fatalf("adopted: %+v", o)
	}
	if err := n.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	see(t, n, "the fence", func(o redis.Observation) bool { return o.Frozen })
}

func TestWhenTheAgentDiesItsGuardClosesAPrimaryOfACluster(t *testing.T) {
	t.Parallel()
	serverBinary(t)
	addr, bus, dir := ports.Addr(t), portOf(ports.Addr(t)), t.TempDir()
	pid, kill := startAgent(t, addr, dir, fmt.Sprintf("member:%d", bus))
	c := client(t, addr, "")
	must(t, c, "SET", "k", "v")
	began := time.Now()
	kill()
	select {
	case <-c.gone:
	case <-time.After(5 * time.Second):
		t.Fatal("the client was not cut")
	}
	t.Logf("guard closed it after %s", time.Since(began))
	o := Options{Addr: addr, Dir: dir, Binary: serverBinary(t), Persistence: PersistNone, Cluster: hermit(addr, fmt.Sprint(bus))}
	n, err := Managed(within(t, 5*time.Second), o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if seen := see(t, n, "the closed primary", isUp); seen.PID != pid || !seen.Frozen || seen.Keys != 1 || !refusesTCP(n) || len(seen.Problems) > 0 {
		t.Fatalf("after the agent's death: %+v", seen)
	}
	_ = n.Kill(within(t, time.Second))
}

func TestWhenTheAgentDiesItsGuardKillsAPrimaryOfAClusterThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	guardKillsWhatHangs(t, fmt.Sprintf("member:%d", portOf(ports.Addr(t))))
}

// TestTheThirdNodeFollowsWhoeverIsPromoted: also one whose present primary was demoted and is closed.
func TestTheThirdNodeFollowsWhoeverIsPromoted(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 3, nil)
	nodes := f.shards[0]
	put(t, nodes[0], f.keys[0], "1")
	for turn := range 4 {
		old, next, third := nodes[turn%3], nodes[(turn+1)%3], nodes[(turn+2)%3]
		caughtUp(t, next, old)
		caughtUp(t, third, old)
		if err := old.Fence(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		final := see(t, old, "the fence", func(o redis.Observation) bool { return o.Frozen })
		o := see(t, next, "the candidate drained", func(o redis.Observation) bool { return o.Pos.Offset == final.Pos.Offset })
		if _, err := next.Promote(within(t, time.Second), electedOf(o), tenure()); err != nil {
			t.Fatal(err)
		}
		join(t, third, next)
		join(t, old, next)
		put(t, next, f.keys[0], fmt.Sprint(turn))
		if err := next.Follow(within(t, time.Second), next.addr, tenure()); !errors.Is(err, redis.ErrRefused) {
			t.Fatalf("follow oneself: %v", err)
		}
	}
	if o := see(t, nodes[1], "the last one", isUp); o.Keys != 1 || len(slots.SetOf(f.layout.Slots[nodes[0].cluster.ShardID]...).Ranges()) != 1 {
		t.Fatalf("%+v", o)
	}
}
