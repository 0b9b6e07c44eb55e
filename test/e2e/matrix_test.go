// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// loopFeatures are what the main role of every client does in turn, each writing its own sequence 1, 2, 3, …
var loopFeatures = []string{"strings", "pipeline", "transaction", "script", "evalsha", "blocking", "stream", "publish"}

// scanned is the number of keys that every complete SCAN must return.
const scanned = 500

// patience is how long a feature may need to work again after an event; an operation that takes longer counts as hanging.
const patience = 10 * time.Second

// matrixClients are the clients, as they come.
var matrixClients = []struct {
	name  string
	start func(*testing.T, *participant, string)
}{
	{"go-redis", inGo(goRedisOps)},
	{"rueidis", inGo(rueidisOps)},
	{"ioredis", asProcess("node", "../clients/matrix_ioredis.js")},
	{"node-redis", asProcess("node", "../clients/matrix_noderedis.js")},
	{"redis-py", asProcess("/usr/bin/python3", "../clients/matrix_redispy.py")},
	{"redigo", inGo(redigoOps)},
	{"redis-cli", inGo(cliOps)},
	{"php-redis", asProcess("php", "../clients/matrix_phpredis.php")},
	{"ruby-redis", asProcess("ruby", "../clients/matrix_ruby.rb")},
}

// TestClientMatrix: every client keeps all its features through a kill of the primary and a switchover.
func TestClientMatrix(t *testing.T) {
	playMatrix(t, func(name string) *participant { return &participant{name: name} })
}

// TestClientMatrixOfAShardedOne: the same behind one address for several shards, all of which lose their primary, and move it.
func TestClientMatrixOfAShardedOne(t *testing.T) {
	args := []string{"--shards", "2", "--replicas", "1", "--durability", "quorum", "--mode"}
	t.Run("cluster", func(t *testing.T) {
		playMatrix(t, func(name string) *participant { return &participant{name: name, tagged: true} }, append(args, "cluster")...)
	})
	t.Run("ring", func(t *testing.T) { // without hash tags: what needs several keys on one shard is left out
		playMatrix(t, func(name string) *participant {
			if name != "go-redis" && name != "rueidis" {
				return nil
			}
			return &participant{name: name, skips: []string{"transaction", "blocking"}}
		}, append(args, "ring")...)
	})
}

// playMatrix lets clients one after another use a deployment of their own; nil: not that one.
func playMatrix(t *testing.T, who func(name string) *participant, args ...string) {
	for _, c := range matrixClients {
		t.Run(c.name, func(t *testing.T) {
			if !*everyone && c.name != "go-redis" && c.name != "rueidis" {
				t.Skip("make show-clients runs it")
			}
			p := who(c.name)
			if p == nil {
				t.Skip("it uses what needs several keys on one shard")
			}
			m := newMatrix(t, p, args...)
			c.start(t, m.p, m.addr)
			m.calm("before the kill")
			m.event("kill -9 of the primary's server", func() {
				s := m.d.waitHealthy(30 * time.Second)
				m.killAt = time.Now()
				for _, sh := range s.Deployments[0].Shards {
					signal(t, sh.node(sh.Primary).PID, syscall.SIGKILL)
				}
			})
			m.calm("after the kill")
			m.healedAt = time.Now()
			m.event("a planned switchover", func() {
				for _, sh := range m.d.waitHealthy(30 * time.Second).Deployments[0].Shards {
					if out, err := m.d.run("switchover", "--shard", sh.ID, "--yes"); err != nil {
						t.Fatalf("%v\n%s", err, out)
					}
				}
			})
			m.calm("after the switchover")
			m.p.finish(t)
			m.judgeReports()
			m.judgeWrites()
			m.judgeMessages()
		})
	}
}

// matrix is one client in one deployment of its own.
type matrix struct {
	t        *testing.T
	d        *deployment
	p        *participant
	addr     string
	features []string
	broken   map[string]bool // what was an error already
	pushed   int
	quiet    [][2]time.Time // when nothing was done to the deployment
	events   []time.Time
	killAt   time.Time
	healedAt time.Time
}

func newMatrix(t *testing.T, p *participant, args ...string) *matrix {
	t.Helper()
	m := &matrix{t: t, d: up(t, args...), p: p, broken: map[string]bool{}}
	for _, f := range append(slices.Clone(loopFeatures), "scan") {
		if !slices.Contains(p.skips, f) {
			m.features = append(m.features, f)
		}
	}
	if p.name == "rueidis" {
		m.features = append(m.features, "cache")
	}
	m.d.waitHealthy(30 * time.Second)
	m.addr = m.d.proxyAddr(0)
	pipe := m.d.client(1).Pipeline()
	for i := range scanned {
		pipe.Set(t.Context(), fmt.Sprintf("%sfix:%d", m.p.prefix(), i), i, 0)
	}
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// calm waits until everything works, with nothing going on, and remembers for how long nothing went on.
func (m *matrix) calm(when string) {
	m.t.Helper()
	m.d.waitHealthy(30 * time.Second)
	m.worksSince(time.Now(), when, 3)
	begun := time.Now()
	wait(500 * time.Millisecond)
	m.quiet = append(m.quiet, [2]time.Time{begun, time.Now()})
	poll(time.Second, m.lastArrived) // before its subscriber is stopped
}

// lastArrived tells whether the latest message that was published is at its subscriber.
func (m *matrix) lastArrived() bool {
	published, got := m.p.all("publish"), m.p.all("message")
	if len(published) == 0 {
		return true
	}
	last := fmt.Sprint(published[len(published)-1].Seq)
	return slices.ContainsFunc(got, func(r report) bool { return r.Value == last })
}

// event does something, and waits until each feature works again.
func (m *matrix) event(what string, do func()) {
	m.t.Helper()
	at := time.Now()
	do()
	m.events = append(m.events, at)
	m.worksSince(at.Add(20*time.Millisecond), "after "+what, 1)
}

// worksSince waits for n successes of each feature that began after a moment, and for a message to the subscriber. Then an
// element is pushed for the pop that has been waiting since before. What does not work is an error once.
func (m *matrix) worksSince(at time.Time, when string, n int) {
	m.t.Helper()
	var missing []string
	poll(patience, func() bool {
		missing = nil
		for _, f := range append(slices.Clone(m.features), "message") {
			if done, last := m.p.successes(f, at); done < n && !m.broken[f] {
				missing = append(missing, fmt.Sprintf("%s: %d since, last report: %s", f, done, last))
			}
		}
		return len(missing) == 0
	})
	for _, f := range missing {
		m.t.Errorf("%s: not within %s %s: %s%s", m.p.name, patience, when, f, m.p.complaints())
		m.broken[f[:strings.Index(f, ":")]] = true
	}
	m.pushed++
	item := fmt.Sprint("item-", m.pushed)
	if err := m.d.client(1).RPush(m.t.Context(), m.p.prefix()+"pop", item).Err(); err != nil {
		m.t.Fatalf("push %s: %v", item, err)
	}
	popped := func() bool {
		return slices.ContainsFunc(m.p.all("pop"), func(r report) bool { return r.Value == item })
	}
	if !m.broken["pop"] && !poll(patience, popped) {
		m.t.Errorf("%s: the waiting pop did not get %s %s; its reports: %+v%s", m.p.name, item, when, m.p.all("pop"), m.p.complaints())
		m.broken["pop"] = true
	}
}

func poll(within time.Duration, cond func() bool) bool {
	for end := time.Now().Add(within); !cond(); wait(20 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// judgeReports: at the kill only errors that the documents name, otherwise none; nothing took longer than a bound.
func (m *matrix) judgeReports() {
	m.t.Helper()
	documented, wrong := map[string]int{}, map[string]int{}
	digits := regexp.MustCompile(`\d+`)
	for _, f := range append(slices.Clone(m.features), "pop", "message", "setup") {
		ok, worst := 0, time.Duration(0)
		for _, r := range m.p.all(f) {
			took := r.end().Sub(r.start())
			switch {
			case r.Error == "":
				ok++
				if f != "pop" && f != "message" {
					worst = max(worst, took)
				}
			case m.allowed(f, r):
				documented[f+": "+clip(r.Error)]++
			default:
				e := f + ": " + digits.ReplaceAllString(r.Error, "N")
				if wrong[e]++; wrong[e] <= 2 {
					m.t.Errorf("%s, %s %d, %s: %s", m.p.name, f, r.Seq, m.moment(r.end()), r.Error)
				}
			}
			if f != "pop" && f != "message" && took > patience {
				m.t.Errorf("%s, %s %d took %s", m.p.name, f, r.Seq, took)
			}
		}
		if len(m.p.all(f)) == 0 {
			continue
		}
		m.t.Logf("%-12s %5d times, at most %.0f ms", f, ok, ms(worst))
	}
	for e, n := range documented {
		m.t.Logf("at the kill: %d × %s", n, e)
	}
	for e, n := range wrong {
		m.t.Logf("not allowed: %d × %s", n, clip(e))
	}
}

// allowed tells the errors that docs/guide/clients.md names for the loss of a primary. A transaction that lost its WATCH
// is no error, but outside of an event nobody else writes the key.
func (m *matrix) allowed(feature string, r report) bool {
	if strings.Contains(r.Error, lostWatch) {
		return slices.ContainsFunc(m.events, func(at time.Time) bool { return r.end().After(at) && r.start().Before(at.Add(2*time.Second)) })
	}
	if r.end().Before(m.killAt) || r.start().After(m.healedAt) {
		return false
	}
	if feature == "stream" && r.start().Before(m.killAt.Add(100*time.Millisecond)) && strings.Contains(r.Error, "nil") {
		return true // XREADGROUP was served, and its reply lost with its primary: it waits again for what comes next
	}
	return slices.ContainsFunc([]string{"OUTCOMEUNKNOWN", "TRYAGAIN", "EXECABORT"}, func(p string) bool { return strings.Contains(r.Error, p) })
}

func (m *matrix) moment(at time.Time) string {
	for i, e := range slices.Backward(m.events) {
		if at.After(e) {
			return fmt.Sprintf("%.0f ms after %s", ms(at.Sub(e)), []string{"the kill", "the beginning of the switchover"}[min(i, 1)])
		}
	}
	return "before any event"
}

// judgeWrites: what was acknowledged is there, once, and what was not is there at most once.
func (m *matrix) judgeWrites() {
	m.t.Helper()
	for _, f := range loopFeatures {
		if f == "publish" {
			continue
		}
		times := m.stored(f)
		acked := 0
		for _, r := range m.p.all(f) {
			n := times[fmt.Sprint(r.Seq)]
			if r.Error == "" {
				acked++
			}
			if r.Error == "" && n == 0 {
				m.t.Errorf("%s: %s %d was acknowledged %s and is lost", m.p.name, f, r.Seq, m.moment(r.end()))
			}
			if n > 1 {
				m.t.Errorf("%s: %s %d is there %d times (acknowledged: %t)", m.p.name, f, r.Seq, n, r.Error == "")
			}
		}
		m.t.Logf("%-12s %5d acknowledged, %d stored", f, acked, len(times))
	}
}

// stored counts each sequence number of a feature's data.
func (m *matrix) stored(feature string) map[string]int {
	m.t.Helper()
	r, ctx, times := m.d.client(2), m.t.Context(), map[string]int{}
	fail := func(err error) {
		if err != nil {
			m.t.Fatalf("read what %s wrote by %s: %v", m.p.name, feature, err)
		}
	}
	switch feature {
	case "strings":
		var keys []string
		for _, a := range m.p.all(feature) {
			keys = append(keys, fmt.Sprintf("%ss:%d", m.p.prefix(), a.Seq))
		}
		values, err := r.MGet(ctx, keys...).Result()
		fail(err)
		for _, v := range values {
			if v != nil {
				times[v.(string)]++
			}
		}
	case "stream":
		entries, err := r.XRange(ctx, m.p.prefix()+"stream", "-", "+").Result()
		fail(err)
		for _, e := range entries {
			times[fmt.Sprint(e.Values["n"])]++
		}
	default:
		lists := []string{m.p.prefix() + feature}
		if feature == "blocking" {
			lists = append(lists, m.p.prefix()+"queue") // pushed, and not moved because of an error in between
		}
		for _, l := range lists {
			items, err := r.LRange(ctx, l, 0, -1).Result()
			fail(err)
			for _, v := range items {
				times[v]++
			}
		}
	}
	return times
}

// judgeMessages: in the quiet times every message reaches the subscriber once, and its publisher is told so.
func (m *matrix) judgeMessages() {
	m.t.Helper()
	got := map[string]int{}
	for _, r := range m.p.all("message") {
		got[r.Value]++
	}
	missed, wrong := map[string]int{}, 0
	for _, r := range m.p.all("publish") {
		n := got[fmt.Sprint(r.Seq)]
		calm := slices.ContainsFunc(m.quiet, func(q [2]time.Time) bool { return r.start().After(q[0]) && r.end().Before(q[1]) })
		if n == 0 && r.Error == "" {
			missed[m.moment(r.end())+", to "+r.Value+" subscribers"]++
		}
		if n > 1 && m.p.tagged && slices.ContainsFunc(m.events, func(at time.Time) bool { return r.end().After(at) && r.start().Before(at.Add(2*time.Second)) }) {
			m.t.Logf("%s: message %d, published %s, came %d times", m.p.name, r.Seq, m.moment(r.end()), n)
			continue // servers of a cluster tell each other, and the one that takes over may hear of it late (cluster.md)
		}
		if n > 1 || calm && (n == 0 || r.Value != "1") {
			if wrong++; wrong <= 3 {
				m.t.Errorf("%s: message %d, published %s to %s subscribers, was received %d times", m.p.name, r.Seq, m.moment(r.end()), r.Value, n)
			}
		}
	}
	for when, n := range missed {
		m.t.Logf("%d messages were accepted %s, and did not arrive", n, when)
	}
	popped := map[string]int{}
	for _, r := range m.p.all("pop") {
		popped[r.Value]++
	}
	for i := 1; i <= m.pushed; i++ {
		if n := popped[fmt.Sprint("item-", i)]; n != 1 {
			m.t.Errorf("%s: item-%d was popped %d times", m.p.name, i, n)
		}
	}
}
