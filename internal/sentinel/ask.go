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

// master finds what clients know under a name; nil: nothing.
func (s *Server) master(name string) *master {
	for _, m := range s.masters {
		if m.Name == name {
			return m
		}
	}
	return nil
}

func (se *session) tell() tell { return se.s.tell(se.announce) }

// sentinel runs SENTINEL <subcommand>.
func (se *session) sentinel(ctx context.Context, args []string) {
	sub := upper(args, 1)
	least, most := arity(sub)
	if least == 0 {
		se.fail(fmt.Sprintf("ERR unknown subcommand '%.128s'. Try SENTINEL HELP.", args[1]))
		return
	}
	if len(args) < least || len(args) > most {
		se.fail(fmt.Sprintf("ERR wrong number of arguments for 'sentinel|%s' command", strings.ToLower(sub)))
		return
	}
	switch sub {
	case "MYID":
		se.bulk(se.s.runID)
	case "MASTERS", "PRIMARIES":
		se.mastersList()
	case "GET-MASTER-ADDR-BY-NAME", "GET-PRIMARY-ADDR-BY-NAME":
		se.address(args[2])
	case "IS-MASTER-DOWN-BY-ADDR", "IS-PRIMARY-DOWN-BY-ADDR":
		se.isDown(args)
	case "INFO-CACHE":
		se.infoCache(args[2:])
	case "RESET":
		n := int64(0)
		for _, m := range se.s.masters {
			if match(args[2], m.Name) {
				n++ // nothing is remembered that could be reset
			}
		}
		se.number(n)
	case "PENDING-SCRIPTS":
		se.pending()
	case "FLUSHCONFIG":
		se.simple("OK") // agreed state is always on disk
	case "HELP":
		se.help()
	case "CONFIG":
		se.configure(args)
	case "DEBUG":
		se.debug(args)
	case "SIMULATE-FAILURE":
		se.simulate(args)
	case "MONITOR":
		se.monitor(args)
	default:
		se.byName(ctx, sub, args)
	}
}

const anyNumber = 1 << 20

// arity returns the least and the greatest number of arguments of SENTINEL <sub>, both names included; zero: there is no such one.
func arity(sub string) (least, most int) {
	switch sub {
	case "MYID", "MASTERS", "PRIMARIES", "PENDING-SCRIPTS", "FLUSHCONFIG", "HELP":
		return 2, 2
	case "DEBUG":
		return 2, anyNumber
	case "INFO-CACHE", "SIMULATE-FAILURE", "CONFIG":
		return 3, anyNumber
	case "FAILOVER":
		return 3, 4 // COORDINATED (Valkey 9)
	case "GET-MASTER-ADDR-BY-NAME", "GET-PRIMARY-ADDR-BY-NAME", "MASTER", "PRIMARY", "REPLICAS", "SLAVES", "SENTINELS", "CKQUORUM", "RESET", "REMOVE":
		return 3, 3
	case "SET":
		return 5, anyNumber
	case "IS-MASTER-DOWN-BY-ADDR", "IS-PRIMARY-DOWN-BY-ADDR", "MONITOR":
		return 6, 6
	}
	return 0, 0
}

func (se *session) mastersList() {
	var all []fields
	for _, m := range se.s.masters {
		if p, ok := m.primary(); ok {
			all = append(all, m.masterFields(se.tell(), p))
		}
	}
	se.array(len(all))
	for _, f := range all {
		se.fields(f)
	}
}

func (se *session) address(name string) {
	m := se.s.master(name)
	if m == nil {
		se.nullArray()
		return
	}
	p, ok := m.primary()
	if !ok {
		se.nullArray()
		return
	}
	host, port := se.tell().at(p.addr)
	se.array(2)
	se.bulk(host)
	se.bulk(port)
}

// byName runs the subcommands whose argument names a master.
func (se *session) byName(ctx context.Context, sub string, args []string) {
	m := se.s.master(args[2])
	if m == nil {
		se.fail(noSuchMaster)
		return
	}
	p, ok := m.primary()
	if !ok {
		se.fail(noSuchMaster)
		return
	}
	t := se.tell()
	switch sub {
	case "MASTER", "PRIMARY":
		se.fields(m.masterFields(t, p))
	case "REPLICAS", "SLAVES":
		rs := m.replicas()
		se.array(len(rs))
		for _, r := range rs {
			se.fields(m.replicaFields(t, r, p))
		}
	case "SENTINELS":
		others := m.others()
		se.array(len(others))
		for _, o := range others {
			se.fields(m.sentinelFields(t, o))
		}
	case "CKQUORUM":
		usable, voters := m.usable()
		if usable >= voters/2+1 && usable > 0 {
			se.simple(fmt.Sprintf("OK %d usable Sentinels. Quorum and failover authorization can be reached", usable))
			return
		}
		se.fail(fmt.Sprintf("NOQUORUM %d usable Sentinels. Not enough available Sentinels to reach the specified quorum for this master. Not enough available Sentinels to reach the majority and authorize a failover", usable))
	case "FAILOVER":
		se.failover(ctx, m, args)
	case "SET":
		se.set(m, args[3:])
	case "REMOVE":
		se.fail("ERR this master is a deployment of Redoubt: stop its members, or hand it back with `redoubt hand-back`")
	}
}

// failover hands in a planned switchover: an operator who asks a Sentinel for one does not expect to lose writes.
func (se *session) failover(ctx context.Context, m *master, args []string) {
	switch {
	case len(args) == 4 && upper(args, 3) != "COORDINATED":
		se.fail("ERR Unknown failover option specified")
		return
	case m.Failover == nil:
		se.fail("ERR this face takes no orders: use `redoubt switchover`")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := m.Failover(ctx); err != nil {
		se.fail("INPROG " + err.Error())
		return
	}
	se.simple("OK")
}

// isDown answers a real Sentinel's question. No vote is ever given: nobody else may fail over what Redoubt keeps.
func (se *session) isDown(args []string) {
	down := int64(0)
	for _, m := range se.s.masters {
		p, ok := m.primary()
		if host, port := se.tell().at(p.addr); ok && p.down && host == args[2] && port == args[3] {
			down = 1
		}
	}
	se.array(3)
	se.number(down)
	se.bulk("*")
	se.number(0)
}

// infoCache answers with the little of INFO that the agents report: a list for each master that is meant, the primary first.
func (se *session) infoCache(names []string) {
	var meant []*master
	for _, n := range names {
		if m := se.s.master(n); m != nil && m.View.Load() != nil {
			meant = append(meant, m)
		}
	}
	se.array(2 * len(meant))
	for _, m := range meant {
		nodes := m.seen()
		se.bulk(m.Name)
		se.array(len(nodes))
		for _, g := range nodes {
			role := "slave"
			if g.Role == topo.RolePrimary {
				role = "master"
			}
			se.array(2)
			se.number((g.Age + se.s.o.Clock.Uptime() - m.reports.Load().at).Milliseconds())
			se.bulk(fmt.Sprintf("# Server\r\nredis_version:%s\r\nprocess_id:%d\r\nrun_id:%s\r\n\r\n# Replication\r\nrole:%s\r\nmaster_replid:%s\r\nmaster_repl_offset:%d\r\n",
				g.Version, g.PID, g.RunID, role, g.Pos.ReplID, g.Pos.Offset))
		}
	}
}

// seen are the reports about the roster's nodes, that of the primary first.
func (m *master) seen() []view.Seen {
	snap, r := m.View.Load(), m.reports.Load()
	var nodes []view.Seen
	for _, n := range snap.Shard.Spec.Nodes {
		g, ok := r.Nodes[n.ID]
		switch {
		case !ok:
		case n.ID == snap.Shard.Assigned.Primary:
			nodes = append([]view.Seen{g}, nodes...)
		default:
			nodes = append(nodes, g)
		}
	}
	return nodes
}
