// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"redoubt/internal/converge"
	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// credentials are what the order says that replicas of the present tenure's primary present (SAFETY A7).
func credentials(in converge.Input) redis.Credentials {
	return redis.Credentials{Secret: in.Shard.Assigned.Secret}
}

// admits returns what replicas of this very server must present: nothing to say unless it serves.
func admits(in converge.Input) redis.Credentials {
	a := in.Shard.Assigned
	if c := sponsor(in); !c.Open() {
		return c
	}
	if a.Phase != topo.PhaseServing || a.Primary != in.Self || a.RunID != in.Seen.RunID || in.Seen.Role != topo.RolePrimary {
		return redis.Credentials{}
	}
	return credentials(in)
}

// noteReplication names what lets somebody outside the roster acknowledge writes: WAIT counts anybody.
func noteReplication(in converge.Input, replicas []string) []string {
	if in.Shard == nil || in.Seen.Role != topo.RolePrimary {
		return nil
	}
	var out []string
	a := in.Shard.Assigned
	if a.Phase == topo.PhaseServing && a.Primary == in.Self && a.Secret == "" && !in.Seen.Open {
		out = append(out, "replication-open: the order of this epoch holds no replication secret, so anybody may replicate and be counted: redoubt switchover begins one that does")
	}
	for _, r := range replicas {
		if strings.HasSuffix(r, ":0") { // who moves slots listens to the stream, is no server, and acknowledges nothing
			continue
		}
		if !slices.ContainsFunc(in.Shard.Spec.Nodes, func(n topo.Node) bool { return n.ID != in.Self && sameAddr(n.Addr, r) }) {
			out = append(out, fmt.Sprintf("stranger-replica: %s replicates from this server and is not in the roster: its acknowledgements count as copies", r))
		}
	}
	return out
}

// sameAddr compares an address of the roster with one that a server tells: it knows others by the IP address that they come
// from, so that a name in the roster can only be compared by port.
func sameAddr(roster, told string) bool {
	host, port, err := net.SplitHostPort(roster)
	toldHost, toldPort, toldErr := net.SplitHostPort(told)
	if err != nil || toldErr != nil {
		return roster == told
	}
	ip := net.ParseIP(host)
	return port == toldPort && (ip == nil || ip.Equal(net.ParseIP(toldHost)))
}
