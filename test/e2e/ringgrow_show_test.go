// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestARingGrowsThroughFailures: a shard joins a ring of many keys while clients write, a primary that gives keys away is killed, then the member that carries
// the change out, and a front stands still over the hand-over and goes on behind it with the ring of before in its hands.
func TestARingGrowsThroughFailures(t *testing.T) {
	if *showKeys == 0 {
		t.Skip("make show-ring-growth runs it: KEYS=300000")
	}
	d := up(t, "--mode", "ring", "--shards", "3", "--replicas", "1", "--durability", "quorum", "--persistence", "none")
	d.waitHealthy(60 * time.Second)
	ctx := t.Context()
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), MaxRetries: -1, ReadTimeout: 30 * time.Second})
	defer c.Close()
	const page = 1000
	for from := 0; from < *showKeys; from += page {
		p := c.Pipeline()
		for i := range page {
			p.Set(ctx, fmt.Sprint("fill:", from+i), fmt.Sprintf("%0100d", from+i), time.Hour)
		}
		if _, err := p.Exec(ctx); err != nil {
			t.Fatal(err)
		}
	}
	scribes, end := startScribes(t, d, 6, 2000)
	wait(time.Second)
	if out, err := d.run("shard", "add", "--yes", "--wait", "0s"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	copying := func() {
		t.Helper()
		d.until(30*time.Second, "keys are copied", func() (bool, string) {
			out, _ := d.run("reshard", "status")
			return strings.Contains(out, "running") && !strings.Contains(out, ", 0 keys"), out
		})
	}
	copying()
	st, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	s1 := st.shard("mymaster-s1")
	for _, n := range s1.Nodes {
		if n.ID == s1.Primary {
			t.Logf("killed: the primary of s1, %s", n.ID)
			signal(t, n.PID, syscall.SIGKILL)
		}
	}
	copying()
	if st, err = d.status(); err != nil {
		t.Fatal(err)
	}
	pid := func(member string) int {
		t.Helper()
		for i, id := range []string{"n1", "n2", "arbiter1"} {
			for _, p := range st.Deployments[0].Proxies {
				if id == member && p.Addr == d.proxyAddr(i) {
					return p.PID
				}
			}
		}
		t.Fatalf("member %q is not there: %+v", member, st.Deployments[0].Proxies)
		return 0
	}
	t.Logf("killed: member %s, which carries the change out", st.Controller)
	signal(t, pid(st.Controller), syscall.SIGKILL)
	wait(300 * time.Millisecond)
	if out, err := d.run("up"); err != nil { // the directory says what it is by now
		t.Fatalf("%v\n%s", err, out)
	}
	if st, err = d.status(); err != nil {
		t.Fatal(err)
	}
	front := pid("arbiter1")
	signal(t, front, syscall.SIGSTOP)
	t.Log("stopped: arbiter1, with clients of its own")
	t.Cleanup(func() { signal(t, front, syscall.SIGCONT) })
	d.ringChanged(3*time.Minute, "shard s4 joins the ring")
	signal(t, front, syscall.SIGCONT)
	wait(3 * time.Second)
	if out, err := d.run("shard", "remove", "s2", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d.ringChanged(3*time.Minute, "shard s2 leaves the ring")
	end()
	compareScribes(t, d, scribes, true)
	for range 50 { // its connections may have been to the member that was killed
		if c.Ping(ctx).Err() == nil {
			break
		}
	}
	wrong := 0
	for from := 0; from < *showKeys; from += page {
		p := c.Pipeline()
		var got []*redis.StringCmd
		for i := range page {
			got = append(got, p.Get(ctx, fmt.Sprint("fill:", from+i)))
		}
		_, _ = p.Exec(ctx)
		for i, g := range got {
			if want := fmt.Sprintf("%0100d", from+i); g.Val() != want {
				if wrong++; wrong < 10 {
					t.Errorf("fill:%d is %.20q (%v)", from+i, g.Val(), g.Err())
				}
			}
		}
	}
	t.Logf("%d of %d keys are wrong", wrong, *showKeys)
}
