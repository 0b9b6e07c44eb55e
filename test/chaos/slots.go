// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// With -cluster Redoubt is put to the test in mode cluster: three shards of a server on each host, whose primaries begin on different
// hosts. All traffic goes to the last shard, as all keys are in one slot, and faults of a server mean that shard's.

const (
	shards   = 3
	ourShard = shards - 1 // it has the slot of tag
)

// shardsOf is the part of the configuration that names the servers of the shards.
func (m *members) shardsOf(b *strings.Builder) {
	b.WriteString("    mode: cluster\n    shards:\n")
	for k := range shards {
		fmt.Fprintf(b, "      - name: s%d\n        nodes:\n", k+1)
		for j := 1; j <= m.r.o.hosts; j++ {
			priority := (j - 1 - k + m.r.o.hosts) % m.r.o.hosts
			fmt.Fprintf(b, "          - {id: n%d, host: h%d, addr: \"%s:%d\", priority: %d}\n", j, j, m.net.Addr(j), 6479+k, priority)
		}
	}
}

// ours is the index of the shard that has the traffic.
func (m *members) ours() int {
	if m.r.o.cluster {
		return ourShard
	}
	return 0
}

// serving are the processes in host i of the server that has the traffic.
func (m *members) serving(i int) []int {
	all := m.called(i, "redis-server")
	if !m.r.o.cluster {
		return all
	}
	mark := fmt.Appendf(nil, "--cluster-announce-port\x00%s\x00", m.serverPorts())
	return slices.DeleteFunc(all, func(pid int) bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err != nil || !bytes.Contains(line, mark)
	})
}

// inSlot puts every key into the one slot, for a plain client.
type inSlot struct{ *redis.Client }
