// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/json"
	"maps"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// beats is a store of reports that the test writes.
type beats struct {
	mu  sync.Mutex
	all map[string]coord.Beat
}

func (b *beats) Send(context.Context, string, []byte, time.Duration) error { return nil }
func (b *beats) Arrived() <-chan struct{}                                  { return nil }
func (b *beats) All(context.Context) (map[string]coord.Beat, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.all), nil
}

func (b *beats) see(s topo.Sighting) {
	body, _ := json.Marshal(s)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all[topo.BeatNode+string(s.Node)] = coord.Beat{Body: body}
}

func TestTheReadOnlyPortReadsFromAFitReplicaElseFromThePrimary(t *testing.T) {
	t.Parallel()
	b := &beats{all: map[string]coord.Beat{}}
	s := newShard(t, 1, func(_ *spec, o *Options) { o.ListenReadonly, o.Beats = "127.0.0.1:0", b })
	rw, ro := s.client(), dialWire(t, s.p.ReadonlyAddr().String())
	rw.want("OK", "SET", "a", "1")
	ro.want("1", "GET", "a")
	if got := ro.do("ROLE"); !strings.Contains(got, "master") {
		t.Fatal(got)
	}
	b.see(topo.Sighting{Node: "n0", Role: topo.RolePrimary, Health: topo.HealthUp, Pos: topo.Position{Offset: 100}})
	b.see(topo.Sighting{Node: "n1", Role: topo.RoleReplica, Health: topo.HealthUp, Whole: true, LinkUp: true, InSync: 1, Pos: topo.Position{Offset: 90}})
	waitFor(t, "reads at the replica", func() bool { return strings.Contains(ro.do("ROLE"), "slave") })
	ro.want("1", "GET", "a")
	ro.want("-READONLY You can't write against a read only replica.", "SET", "a", "2")
	ro.want("OK", "MULTI")
	ro.want("QUEUED", "GET", "a")
	ro.want("*1 $1 1", "EXEC")
	s.nodes[1].signal(syscall.SIGKILL)
	<-s.nodes[1].gone
	ro.send("GET", "a")
	b.see(topo.Sighting{Node: "n1", Role: topo.RoleReplica, Health: topo.HealthExited})
	if got := ro.recv(); got != "1" {
		t.Fatal(got)
	}
}
