// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/test/kubeapi"
	"redoubt/test/outside"
)

// upOver starts a deployment whose agreed state is kept by a store of that kind with three nodes; nil: by its members.
func upOver(t *testing.T, kind string, args ...string) (*deployment, *outside.Cluster) {
	t.Helper()
	var c *outside.Cluster
	switch kind {
	case "raft":
		return up(t, args...), nil
	case "etcd":
		c = outside.Etcd(t, 3, "--heartbeat-interval", "50", "--election-timeout", "500")
	case "consul":
		c = outside.Consul(t, 3)
	case "kubernetes":
		return up(t, append(args, "--store", kubeURL(kubeapi.Real(t), "e2e", ""))...), nil
	}
	return up(t, append(args, "--store", kind+"://"+strings.ReplaceAll(strings.Join(c.Endpoints, ","), "http://", ""))...), c
}

// agentOf is the process of a member; data nodes have their member's id.
func agentOf(t *testing.T, s status, member string) int {
	t.Helper()
	pid := s.node(member).AgentPID
	if pid == 0 {
		t.Fatalf("the process of %s is not known: %+v", member, s)
	}
	return pid
}

// stories are what happens to a deployment over any store; a deployment is well when one begins.
var stories = []struct {
	name   string
	within time.Duration
	pick   func(*deployment) func(status) string
	hit    func(*testing.T, *deployment, status) (time.Time, func())
}{
	{"kill -9 of the primary's server", 10 * time.Second, anyProxy, func(t *testing.T, _ *deployment, s status) (time.Time, func()) {
		at := time.Now()
		signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
		return at, nil
	}},
	{"host of the primary lost", 15 * time.Second, survivors, func(t *testing.T, d *deployment, s status) (time.Time, func()) {
		n := s.node(s.primary())
		at := time.Now()
		signal(t, n.AgentPID, syscall.SIGKILL)
		signal(t, n.PID, syscall.SIGKILL)
		return at, d.start
	}},
	{"host of primary and controller lost", 15 * time.Second, survivors, func(t *testing.T, d *deployment, s status) (time.Time, func()) {
		if s.Controller != s.primary() { // the other way round: the primary goes to where the controller is
			d.switchover("--to", s.Controller)
			wait(time.Second)
			s = d.waitHealthy(10 * time.Second)
		}
		n := s.node(s.primary())
		at := time.Now()
		signal(t, n.AgentPID, syscall.SIGKILL)
		signal(t, n.PID, syscall.SIGKILL)
		return at, d.start
	}},
	{"planned switchover", 10 * time.Second, anyProxy, func(_ *testing.T, d *deployment, _ status) (time.Time, func()) {
		return d.switchover(), nil
	}},
}

// switchover orders one, again if the primary was just not well, and returns when the order that was carried out was given.
func (d *deployment) switchover(args ...string) time.Time {
	d.t.Helper()
	var at time.Time
	d.until(10*time.Second, "a switchover", func() (bool, string) {
		at = time.Now()
		out, err := d.run(append([]string{"switchover", "--yes"}, args...)...)
		return err == nil, out + errText(err)
	})
	return at
}

func anyProxy(d *deployment) func(status) string { return d.first }

// survivors picks a proxy of a member that is neither the primary's nor the controller's.
func survivors(d *deployment) func(status) string {
	return func(s status) string {
		for _, p := range s.Deployments[0].Proxies {
			if p.PID != s.node(s.primary()).AgentPID && p.PID != s.node(s.Controller).AgentPID {
				return p.Addr
			}
		}
		d.t.Fatal("no proxy is left")
		return ""
	}
}

// empty removes all keys: the writers of the next story begin with the same ones.
func (d *deployment) empty() {
	d.t.Helper()
	d.waitHealthy(20 * time.Second)
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0)})
	defer c.Close()
	if err := c.FlushAll(d.t.Context()).Err(); err != nil {
		d.t.Fatal(err)
	}
}

// overStore does to a deployment over a store outside what production does.
func overStore(t *testing.T, kind string) {
	d, c := upOver(t, kind)
	tellStories(t, d, kind)
	losesNodes(t, d, c)
	every := func(do func(i int)) func() {
		return func() {
			for i := range c.Size() {
				do(i)
			}
		}
	}
	outageOf(t, d, kind+": all nodes of the store stopped", every(c.Stop), every(c.Continue))
}

func tellStories(t *testing.T, d *deployment, kind string) {
	t.Helper()
	for _, story := range stories {
		d.empty()
		outages, v := repeat(t, d, roundsOr(1), story.within, story.pick(d), func(s status) (time.Time, func()) { return story.hit(t, d, s) })
		figures(t, kind+": "+story.name, outages, v)
		requireNothingLost(t, v)
	}
}

func TestServiceOverEtcd(t *testing.T)   { overStore(t, "etcd") }
func TestServiceOverConsul(t *testing.T) { overStore(t, "consul") }

// losesNodes kills each node of the store once, its leader among them: no failover, and writes go on.
func losesNodes(t *testing.T, d *deployment, c *outside.Cluster) {
	t.Helper()
	before := d.waitHealthy(20 * time.Second)
	w := goRedisWriter("p", "lose:nodes", redis.NewClient(&redis.Options{Addr: d.proxyAddr(0)}))
	waitAcked(t, w, 20)
	begun := time.Now()
	for i := range c.Size() {
		c.Kill(i)
		wait(1500 * time.Millisecond)
		c.Start(i)
		c.Await(i)
		wait(500 * time.Millisecond)
	}
	after := d.waitHealthy(20 * time.Second)
	longest, acked, errors, message := gap([]*writer{w}, begun, time.Now())
	w.finish()
	t.Logf("%s: each of %d nodes of the store killed once: %d writes acknowledged, %d errors %s, longest time without one %.0f ms, epoch %d before and %d after",
		c.Kind, c.Size(), acked, errors, message, ms(longest), before.epoch(), after.epoch())
	if errors > 0 || longest > 2*time.Second || after.epoch() != before.epoch() {
		t.Errorf("the loss of single nodes of the store was noticed: %d errors, longest %s, epoch %d → %d", errors, longest, before.epoch(), after.epoch())
	}
}

// outageOf has the store be away for a while: the primary goes on by the promises of the others.
func outageOf(t *testing.T, d *deployment, what string, stop, goOn func()) {
	t.Helper()
	before := d.waitHealthy(20 * time.Second)
	var ws []*writer
	for i := range 3 {
		ws = append(ws, goRedisWriter(fmt.Sprint("p", i), fmt.Sprint("outage:", i), redis.NewClient(&redis.Options{Addr: d.proxyAddr(i)})))
		waitAcked(t, ws[i], 20)
	}
	stop()
	begun := time.Now()
	wait(2 * time.Second)
	out, err := d.run("status")
	for _, words := range []string{"no answer", "goes on by the promise of"} {
		if err != nil || !strings.Contains(out, words) {
			t.Errorf("in the outage status does not say %q: %v\n%s", words, err, out)
		}
	}
	wait(*outageFor - time.Since(begun))
	goOn()
	ended := time.Now()
	after := d.waitHealthy(30 * time.Second)
	healed := time.Since(ended)
	wait(2 * time.Second)
	longest, acked, errors, message := gap(ws, begun, time.Now())
	for _, w := range ws {
		w.finish()
	}
	t.Logf("%s for %s: %d writes acknowledged through three proxies, %d errors %s, longest time without one %.0f ms, all well %s after its return",
		what, ended.Sub(begun).Round(time.Millisecond), acked, errors, message, ms(longest), healed.Round(time.Millisecond))
	if errors > 0 || longest > 2*time.Second || after.epoch() != before.epoch() {
		t.Errorf("writes did not go on: %d errors, longest %s, epoch %d → %d", errors, longest, before.epoch(), after.epoch())
	}
}

// TestTwoMembersAreEnoughOverEtcd: the majority is the store's, so either of two members may be lost. A second deployment under the
// same prefix is told so.
func TestTwoMembersAreEnoughOverEtcd(t *testing.T) {
	c := outside.Etcd(t, 1)
	at := "etcd://" + strings.TrimPrefix(c.Endpoints[0], "http://") + "/two"
	d := up(t, "--replicas", "1", "--store", at)
	s := d.waitHealthy(20 * time.Second)
	if len(s.nodes()) != 2 {
		t.Fatalf("%d nodes: %+v", len(s.nodes()), s)
	}
	if out, err := d.run("member", "list"); err != nil || !strings.Contains(out, "1 of 2 must be alive") || !strings.Contains(out, "kept by etcd") {
		t.Errorf("%v\n%s", err, out)
	}
	if body := d.metricsOf(0); !strings.Contains(body, `redoubt_store_endpoint_up{kind="etcd",endpoint="`+c.Endpoints[0]+`"} 1`) {
		t.Errorf("the metrics do not tell of the endpoint:\n%s", body)
	}
	rival := &deployment{t: t, bin: d.bin, dir: t.TempDir(), base: freeBase(t), args: []string{"--replicas", "1", "--store", at, "--wait", "10s"}}
	out, err := rival.tryStart()
	if err == nil || !strings.Contains(out, "runs at 127.0.0.1:") {
		t.Errorf("a second deployment under one prefix: %v\n%s", err, out)
	}
	if out, err := rival.run("down", "--yes"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	outages, v := repeat(t, d, 1, 15*time.Second, d.survivor, func(s status) (time.Time, func()) {
		n := s.node(s.primary())
		at := time.Now()
		signal(t, agentOf(t, s, n.ID), syscall.SIGKILL)
		signal(t, n.PID, syscall.SIGKILL)
		return at, d.start
	})
	figures(t, "two members over etcd: host of the primary lost", outages, v)
}

// metricsOf reads the metrics of the member with that place.
func (d *deployment) metricsOf(i int) string {
	d.t.Helper()
	r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", d.base+30+i))
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return string(body)
}

// storeLoad is how often all members together read and wrote the store so far.
func (d *deployment) storeLoad() (reads, swaps int) {
	d.t.Helper()
	for i := range 3 {
		for line := range strings.Lines(d.metricsOf(i)) {
			n := 0
			if c, _ := fmt.Sscanf(line, "redoubt_store_reads_total %d", &n); c == 1 {
				reads += n
			}
			if c, _ := fmt.Sscanf(line, "redoubt_store_swaps_total %d", &n); c == 1 {
				swaps += n
			}
		}
	}
	return reads, swaps
}

// TestStoresBesideEachOther prints the same failovers for each store, for `make bench-stores`.
func TestStoresBesideEachOther(t *testing.T) {
	if *rounds == 0 {
		t.Skip("make bench-stores")
	}
	for _, kind := range []string{"raft", "etcd", "consul", "kubernetes"} {
		t.Run(kind, func(t *testing.T) {
			d, _ := upOver(t, kind)
			for _, story := range stories {
				d.empty()
				outages, v := repeat(t, d, *rounds, story.within, story.pick(d), func(s status) (time.Time, func()) { return story.hit(t, d, s) })
				figures(t, kind+": "+story.name, outages, v)
				requireNothingLost(t, v)
			}
			d.waitHealthy(20 * time.Second)
			reads, swaps := d.storeLoad()
			wait(5 * time.Second)
			later, written := d.storeLoad()
			t.Logf("%s: in 5 s without an event %d reads of a store outside and %d writes by all members together", kind, later-reads, written-swaps)
		})
	}
}
