// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"testing"
	"time"
)

// keenness returns how sure the loops are that the next event comes soon: the most of all of them.
func (s *shard) keenness() int {
	most := 0
	for _, lp := range s.p.loops {
		got := make(chan int)
		lp.post(func() { got <- lp.keen })
		most = max(most, <-got)
	}
	return most
}

// A loop looks for events only while they follow each other: one client at a time makes it keen, an idle one does not.
func TestALoopIsKeenOnlyWhileEventsFollowEachOther(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	waitFor(t, "one client after the other makes a loop keen", func() bool {
		for range 300 {
			c.want("PONG", "PING")
		}
		return s.keenness() >= keenMin
	})
	waitFor(t, "rare commands make it sleep", func() bool {
		<-time.After(2 * keenFor)
		c.want("PONG", "PING")
		return s.keenness() < keenMin
	})
}
