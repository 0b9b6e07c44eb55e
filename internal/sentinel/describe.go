// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"fmt"
	"strconv"
	"time"

	"redoubt/internal/topo"
)

// fields are the pairs of one described instance, in Sentinel's order (sentinel.c, addReplySentinelRedisInstance,
// Redis 7.0.15). All values are strings.
type fields [][2]string

func (f *fields) add(name, value string) { *f = append(*f, [2]string{name, value}) }

// common is what masters, replicas and sentinels share. pingAge stands for the time since the last report.
func (s *Server) common(i instance, flags string) fields {
	var f fields
	down := ""
	if i.down {
		down = ms(max(i.downFor, time.Millisecond))
	}
	pingAge := ms(min(s.o.Clock.Uptime()-s.reports.Load().at, time.Second))
	f.add("name", i.name)
	f.add("ip", i.ip)
	f.add("port", i.port)
	f.add("runid", i.runID)
	f.add("flags", flags)
	f.add("link-pending-commands", "0")
	f.add("link-refcount", "1")
	f.add("last-ping-sent", "0")
	f.add("last-ok-ping-reply", pingAge)
	f.add("last-ping-reply", pingAge)
	if down != "" {
		f.add("s-down-time", down)
	}
	return f
}

func (s *Server) roleFields(f *fields, role string) {
	f.add("down-after-milliseconds", ms(s.downAfter()))
	f.add("info-refresh", ms(min(s.o.Clock.Uptime()-s.reports.Load().at, time.Second)))
	f.add("role-reported", role)
	f.add("role-reported-time", ms(s.o.Clock.Uptime()-s.began))
}

func (s *Server) masterFields(i instance) fields {
	flags := "master"
	if i.down {
		flags += ",s_down,o_down"
	}
	f := s.common(i, flags)
	if i.down {
		f.add("o-down-time", ms(max(i.downFor, time.Millisecond)))
	}
	s.roleFields(&f, "master")
	_, voters := s.usable()
	timing := topo.LANTiming()
	if snap := s.o.View.Load(); snap != nil {
		timing = snap.Shard.Spec.Timing
	}
	f.add("config-epoch", fmt.Sprint(s.epoch()))
	f.add("num-slaves", strconv.Itoa(len(s.replicas())))
	f.add("num-other-sentinels", strconv.Itoa(len(s.others())))
	f.add("quorum", strconv.Itoa(voters/2+1))
	f.add("failover-timeout", ms(timing.Park.D()))
	f.add("parallel-syncs", strconv.Itoa(max(len(s.replicas()), 1)))
	return f
}

func (s *Server) replicaFields(r replica, master instance) fields {
	flags := "slave"
	if r.down {
		flags += ",s_down,disconnected"
	}
	f := s.common(r.instance, flags)
	s.roleFields(&f, "slave")
	status := "ok"
	if !r.linkUp {
		status = "err"
	}
	f.add("master-link-down-time", ms(r.linkDown))
	f.add("master-link-status", status)
	f.add("master-host", master.ip)
	f.add("master-port", master.port)
	f.add("slave-priority", strconv.Itoa(r.priority))
	f.add("slave-repl-offset", strconv.FormatInt(r.offset, 10))
	f.add("replica-announced", "1")
	return f
}

func (s *Server) sentinelFields(i instance) fields {
	f := s.common(i, "sentinel")
	f.add("down-after-milliseconds", ms(s.downAfter()))
	f.add("last-hello-message", ms(min(s.o.Clock.Uptime()-s.reports.Load().at, time.Second)))
	f.add("voted-leader", "?")
	f.add("voted-leader-epoch", "0")
	return f
}
