// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// TestEachShardOfARingIsAMaster: clients that distribute keys themselves find the primary of each shard by its name, and clients of another
// subnet are told other addresses.
func TestEachShardOfARingIsAMaster(t *testing.T) {
	d := up(t, "--mode", "ring", "--shards", "2", "--sentinel-addresses", "direct")
	s := d.waitHealthy(30 * time.Second)
	sh := s.Deployments[0].Shards[0]
	d.set("sentinel", `announce: [{clients: 127.0.0.2/32, map: {127.0.0.1: 203.0.113.7}}]`)
	s = d.waitHealthy(30 * time.Second)
	sentinel := s.Sentinels[1].Addr
	address := func(from string) string {
		nc, err := (&net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", sentinel)
		if err != nil {
			t.Fatal(err)
		}
		c := redis.NewConn(nc, 2*time.Second, 2*time.Second)
		defer c.Close()
		at, err := redis.Strings(c.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", sh.ID))
		if err != nil {
			return err.Error()
		}
		return strings.Join(at, ":")
	}
	role, err := redis.Values(ask(sentinel, "ROLE"))
	if err != nil || len(role) != 2 {
		t.Fatalf("ROLE: %v %v", role, err)
	}
	if names, err := redis.Strings(role[1], nil); err != nil || len(names) != 2 || names[0] != sh.ID {
		t.Errorf("masters: %v %v", names, err)
	}
	d.until(10*time.Second, "the shard's primary is named", func() (bool, string) { a := address("127.0.0.1"); return strings.Contains(a, ":"), a })
	before := address("127.0.0.1")
	if there := address("127.0.0.2"); there != strings.Replace(before, "127.0.0.1", "203.0.113.7", 1) {
		t.Errorf("the other subnet is told %s, this one %s", there, before)
	}
	s, err = d.status()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Deployments[0].Shards[0].Nodes {
		if n.Addr == before {
			signal(t, n.PID, syscall.SIGKILL)
		}
	}
	d.until(10*time.Second, "the shard's new primary is named", func() (bool, string) { a := address("127.0.0.1"); return a != before, a })
}
