// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestClusterLosesMostOfItsPrimariesAtOnce: two of three are killed in the same moment, so that the servers by themselves could elect
// nobody. Both shards are back as quickly as one would be, and the third notices nothing.
func TestClusterLosesMostOfItsPrimariesAtOnce(t *testing.T) {
	c := newClusterCrew(t)
	for round := range roundsOr(2) {
		s := c.d.waitHealthy(30 * time.Second)
		shards := s.Deployments[0].Shards
		g := c.load(fmt.Sprint("most", round))
		wait(300 * time.Millisecond)
		at := time.Now()
		var both sync.WaitGroup
		for _, sh := range shards[:2] {
			pid := sh.node(sh.Primary).PID
			both.Go(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		}
		both.Wait()
		c.d.goesOn(g.ws, at, 20*time.Second)
		wait(500 * time.Millisecond)
		hit, other := outage(slices.Concat(g.ws[0:4]), at), outage(g.ws[4:6], at)
		t.Logf("round %d: the two shards waited for at most %.0f ms (%s), the third for %.0f ms", round+1, ms(hit.outage), hit.who, ms(other.outage))
		if hit.outage > 5*time.Second {
			t.Errorf("%.1f s without the shards", hit.outage.Seconds())
		}
		for _, w := range g.ws {
			w.finish()
		}
		v := judge(t, c.d.proxyAddr(1), g.ws)
		t.Logf("%d acknowledged, %d lost, %d errors: %v", v.acked, v.lost, v.errors, v.messages)
	}
	c.d.waitHealthy(30 * time.Second)
	c.d.until(15*time.Second, "the servers agree with what is agreed", func() (bool, string) {
		out, err := c.d.run("cluster", "check")
		return err == nil && strings.Contains(out, "6 servers were asked"), out + errText(err)
	})
}

// check is the documented contract of `redoubt cluster check --json`, as far as the tests use it.
type check struct {
	Servers  int `json:"servers"`
	Findings []struct {
		Name    string   `json:"name"`
		Text    string   `json:"text"`
		Does    string   `json:"does"`
		Person  string   `json:"person"`
		Servers []string `json:"servers"`
	} `json:"findings"`
}

// found returns the names of what cluster check finds.
func (e *estate) found() ([]string, check) {
	e.t.Helper()
	var c check
	out, _ := e.d.run("cluster", "check", "--json")
	if json.Unmarshal([]byte(out), &c) != nil {
		return []string{"no answer"}, c
	}
	var names []string
	for _, f := range c.Findings {
		names = append(names, f.Name)
	}
	return names, c
}

// TestAClusterIsHealed: a server that nobody agreed on is forgotten everywhere, marks of a move that nobody goes on with are taken
// away where no key can be lost by it, and are named where one could be. All of it is said, and who has to act.
func TestAClusterIsHealed(t *testing.T) {
	e := newEstate(t, 5*time.Second)
	e.adopt()
	e.d.waitHealthy(30 * time.Second)
	e.d.until(10*time.Second, "nothing is wrong", func() (bool, string) {
		names, c := e.found()
		return len(names) == 0 && c.Servers == 6, fmt.Sprintf("%+v", c)
	})
	ghost := e.ghost()
	a, b := e.addrs[0], e.addrs[1] // slots 0-5460 and 5461-10922
	idA, idB := e.id(a), e.id(b)
	e.tell(a, "CLUSTER", "SETSLOT", 7000, "IMPORTING", idB)
	e.tell(b, "CLUSTER", "SETSLOT", 7000, "MIGRATING", idA)
	split := "split{x}" // slot 16287 is the third shard's; its copy at the first one is what a dead mover leaves
	third := e.addrs[2]
	e.tell(third, "SET", split, "old")
	e.tell(a, "CLUSTER", "SETSLOT", 16287, "IMPORTING", e.id(third))
	one := e.direct(a).Conn()
	defer one.Close()
	for _, cmd := range [][]any{{"ASKING"}, {"SET", split, "new"}} {
		if err := one.Do(t.Context(), cmd...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := e.d.run("reshard", "--yes", "--weight", "s1=0.9"); err == nil || !strings.Contains(err.Error(), "marked as moving") {
		t.Errorf("slots are moved while somebody else's are: %v\n%s", err, out)
	}
	begun := time.Now()
	e.d.until(10*time.Second, "the ghost is found", func() (bool, string) {
		names, c := e.found()
		return slices.Contains(names, "ghost"), fmt.Sprintf("%+v", c)
	})
	e.d.until(30*time.Second, "only what a person has to do is left", func() (bool, string) {
		names, c := e.found()
		return slices.Equal(names, []string{"open-slot"}) && c.Findings[0].Person != "" && strings.Contains(c.Findings[0].Text, "16287"), fmt.Sprintf("%+v", c)
	})
	t.Logf("healed %.1f s later", time.Since(begun).Seconds())
	for _, addr := range e.addrs {
		e.d.until(10*time.Second, addr+" knows neither the ghost nor a move of slot 7000", func() (bool, string) {
			text := e.tell(addr, "CLUSTER", "NODES")
			return !strings.Contains(text, ghost) && !strings.Contains(text, "[7000-"), text
		})
	}
	if text := e.tell(a, "CLUSTER", "NODES"); !strings.Contains(text, "[16287-<-") {
		t.Errorf("the mark of a slot with keys elsewhere is gone:\n%s", text)
	}
	if v := e.tell(third, "GET", split); v != "old" {
		t.Errorf("the owner's key is %q", v)
	}
	out, err := e.d.run("cluster", "check")
	if err == nil {
		t.Error("cluster check found nothing")
	}
	t.Logf("%s", out)
}

// ghost starts a server, has one of the cluster meet it, and waits until the others know it by gossip.
func (e *estate) ghost() string {
	t := e.t
	t.Helper()
	addr := e.at(1, 120)
	host, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	dir := filepath.Join(e.d.dir, "ghost")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("redis-server", "--port", port, "--bind", host, "--dir", dir, "--save", "", "--requirepass", estatePassword, "--cluster-enabled", "yes", "--cluster-announce-ip", host, "--cluster-port", strconv.Itoa(n+200), "--logfile", filepath.Join(dir, "log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e.procs[addr] = cmd
	e.d.until(10*time.Second, "the ghost answers", func() (bool, string) {
		err := e.direct(addr).Ping(t.Context()).Err()
		return err == nil, errText(err)
	})
	id := e.id(addr)
	e.tell(e.addrs[0], "CLUSTER", "MEET", host, n, n+200)
	e.d.until(10*time.Second, "somebody knows the ghost", func() (bool, string) {
		text := e.tell(e.addrs[0], "CLUSTER", "NODES")
		return strings.Contains(text, id), text
	})
	return id
}

func (e *estate) id(addr string) string { return e.tell(addr, "CLUSTER", "MYID") }

func (e *estate) tell(addr string, args ...any) string {
	e.t.Helper()
	text, err := e.direct(addr).Do(e.t.Context(), args...).Text()
	if err != nil {
		e.t.Fatalf("%s: %v: %v", addr, args, err)
	}
	return text
}
