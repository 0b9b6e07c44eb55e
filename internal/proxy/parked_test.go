// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"syscall"
	"testing"
)

// A WAIT that was parked while its primary died says nothing about the next one, which may never have got the writes.
func TestAWaitThatOutlivesItsPrimaryVouchesForNothing(t *testing.T) {
	t.Parallel()
	s := newShard(t, 2, nil)
	c := s.client()
	c.want("OK", "SET", "a", "1")
	s.nodes[0].signal(syscall.SIGKILL)
	<-s.nodes[0].gone
	c.send("WAIT", "1", "3000")
	waitFor(t, "it is parked", func() bool { return s.p.Stats().Parked > 0 })
	s.failover()
	if got := c.recv(); got != "0" {
		t.Errorf("%s replicas are said to hold the write", got)
	}
	c.want("OK", "SET", "b", "1")
	c.want("1", "WAIT", "1", "3000")
}
