// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"fmt"
	"strings"
	"time"

	"redoubt/internal/topo"
	"redoubt/internal/view"
)

const noSuchMaster = "ERR No such master with that name"

// sentinel runs SENTINEL <subcommand>.
func (se *session) sentinel(ctx context.Context, args []string) {
	sub := upper(args, 1)
	need, known := arity(sub)
	if !known {
		se.fail(fmt.Sprintf("ERR Unknown sentinel subcommand '%.128s'", args[1]))
		return
	}
	if len(args) < need {
		se.fail(fmt.Sprintf("ERR wrong number of arguments for 'sentinel|%s' command", strings.ToLower(sub)))
		return
	}
	switch sub {
	case "MYID":
		se.bulk(se.s.runID)
	case "MASTERS", "PRIMARIES":
		if p, ok := se.s.primary(); ok {
			se.array(1)
			se.fields(se.s.masterFields(p))
			return
		}
		se.array(0)
	case "GET-MASTER-ADDR-BY-NAME", "GET-PRIMARY-ADDR-BY-NAME":
		p, ok := se.s.primary()
		if args[2] != se.s.o.Name || !ok {
			se.nullArray()
			return
		}
		se.array(2)
		se.bulk(p.ip)
		se.bulk(p.port)
	case "IS-MASTER-DOWN-BY-ADDR", "IS-PRIMARY-DOWN-BY-ADDR":
		se.isDown(args)
	case "INFO-CACHE":
		se.infoCache(args[2:])
	case "RESET":
		n := int64(0)
		if match(args[2], se.s.o.Name) {
			n = 1 // nothing is remembered that could be reset
		}
		se.number(n)
	case "PENDING-SCRIPTS":
		se.array(0)
	case "FLUSHCONFIG":
		se.simple("OK") // agreed state is always on disk
	case "HELP":
		se.help()
	case "MONITOR", "REMOVE", "SET", "CONFIG", "SIMULATE-FAILURE", "DEBUG":
		se.fail("ERR not configured here: deployments and their settings are in the member's file, see `redoubt config sample`")
	default:
		se.byName(ctx, sub, args[2])
	}
}

// arity returns the least number of arguments of SENTINEL <sub>, both names included.
func arity(sub string) (n int, known bool) {
	switch sub {
	case "MYID", "MASTERS", "PRIMARIES", "PENDING-SCRIPTS", "FLUSHCONFIG", "HELP", "DEBUG", "INFO-CACHE", "SIMULATE-FAILURE", "MONITOR", "CONFIG", "SET", "REMOVE":
		return 2, true
	case "GET-MASTER-ADDR-BY-NAME", "GET-PRIMARY-ADDR-BY-NAME", "MASTER", "PRIMARY", "REPLICAS", "SLAVES", "SENTINELS", "CKQUORUM", "FAILOVER", "RESET":
		return 3, true
	case "IS-MASTER-DOWN-BY-ADDR", "IS-PRIMARY-DOWN-BY-ADDR":
		return 6, true
	}
	return 0, false
}

// byName runs the subcommands whose argument names a deployment.
func (se *session) byName(ctx context.Context, sub, name string) {
	p, ok := se.s.primary()
	if name != se.s.o.Name || !ok {
		se.fail(noSuchMaster)
		return
	}
	switch sub {
	case "MASTER", "PRIMARY":
		se.fields(se.s.masterFields(p))
	case "REPLICAS", "SLAVES":
		rs := se.s.replicas()
		se.array(len(rs))
		for _, r := range rs {
			se.fields(se.s.replicaFields(r, p))
		}
	case "SENTINELS":
		others := se.s.others()
		se.array(len(others))
		for _, o := range others {
			se.fields(se.s.sentinelFields(o))
		}
	case "CKQUORUM":
		usable, voters := se.s.usable()
		if usable >= voters/2+1 && usable > 0 {
			se.simple(fmt.Sprintf("OK %d usable Sentinels. Quorum and failover authorization can be reached", usable))
			return
		}
		se.fail(fmt.Sprintf("NOQUORUM %d usable Sentinels. Not enough available Sentinels to reach the majority and authorize a failover", usable))
	case "FAILOVER":
		se.failover(ctx)
	}
}

// failover hands in a planned switchover: an operator who asks a Sentinel for one does not expect to lose writes.
func (se *session) failover(ctx context.Context) {
	if se.s.o.Failover == nil {
		se.fail("ERR this face takes no orders: use `redoubt switchover`")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := se.s.o.Failover(ctx); err != nil {
		se.fail("INPROG " + err.Error())
		return
	}
	se.simple("OK")
}

// isDown answers a real Sentinel's question. No vote is ever given: nobody else may fail over what Redoubt keeps.
func (se *session) isDown(args []string) {
	down := int64(0)
	if p, ok := se.s.primary(); ok && p.down && p.ip == args[2] && p.port == args[3] {
		down = 1
	}
	se.array(3)
	se.number(down)
	se.bulk("*")
	se.number(0)
}

// infoCache answers with the little of INFO that the agents report.
func (se *session) infoCache(names []string) {
	wanted := len(names) == 0
	for _, n := range names {
		wanted = wanted || n == se.s.o.Name
	}
	snap, r := se.s.o.View.Load(), se.s.reports.Load()
	if !wanted || snap == nil {
		se.array(0)
		return
	}
	var nodes []view.Seen
	for _, n := range snap.Shard.Spec.Nodes {
		if g, ok := r.Nodes[n.ID]; ok {
			nodes = append(nodes, g)
		}
	}
	se.array(2)
	se.bulk(se.s.o.Name)
	se.array(len(nodes))
	for _, g := range nodes {
		role := "slave"
		if g.Role == topo.RolePrimary {
			role = "master"
		}
		se.array(2)
		se.number((g.Age + se.s.o.Clock.Uptime() - r.at).Milliseconds())
		se.bulk(fmt.Sprintf("# Server\r\nredis_version:%s\r\nprocess_id:%d\r\nrun_id:%s\r\n\r\n# Replication\r\nrole:%s\r\nmaster_replid:%s\r\nmaster_repl_offset:%d\r\n",
			g.Version, g.PID, g.RunID, role, g.Pos.ReplID, g.Pos.Offset))
	}
}

func (se *session) help() {
	lines := []string{
		"SENTINEL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
		"CKQUORUM <master-name>", "    Check whether enough members are alive to decide a failover.",
		"FAILOVER <master-name>", "    Ask for a planned switchover, which loses nothing.",
		"GET-MASTER-ADDR-BY-NAME <master-name>", "    Return the address that clients should write to.",
		"INFO-CACHE <master-name>", "    Return what the agents reported of each server.",
		"IS-MASTER-DOWN-BY-ADDR <ip> <port> <current-epoch> <runid>", "    Say whether the primary at that address is out of service.",
		"MASTER <master-name>", "    Show the state of the deployment.",
		"MASTERS", "    Show the state of all deployments.",
		"MYID", "    Return the id of this member's face.",
		"REPLICAS <master-name>", "    Show where reads may go.",
		"SENTINELS <master-name>", "    Show the faces of the other members.",
	}
	se.array(len(lines))
	for _, l := range lines {
		se.simple(l)
	}
}
