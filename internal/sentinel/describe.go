// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"fmt"
	"strconv"
	"time"
)

// fields are the pairs of one described instance, in Sentinel's order (sentinel.c, addReplySentinelRedisInstance,
// Redis 7.0.15). All values are strings.
type fields [][2]string

func (f *fields) add(name, value string) { *f = append(*f, [2]string{name, value}) }

// common is what masters, replicas and sentinels share. pingAge stands for the time since the last report.
func (m *master) common(t tell, i instance, flags string) fields {
	var f fields
	down := ""
	if i.down {
		down = ms(max(i.downFor, time.Millisecond))
	}
	name := i.name
	if name == "" {
		name = t.addr(i.addr)
	}
	host, port := t.at(i.addr)
	f.add("name", name)
	f.add("ip", host)
	f.add("port", port)
	f.add("runid", i.runID)
	f.add("flags", flags)
	f.add("link-pending-commands", "0")
	f.add("link-refcount", "1")
	f.add("last-ping-sent", "0")
	f.add("last-ok-ping-reply", m.pingAge())
	f.add("last-ping-reply", m.pingAge())
	if down != "" {
		f.add("s-down-time", down)
	}
	return f
}

func (m *master) pingAge() string {
	return ms(min(m.s.o.Clock.Uptime()-m.reports.Load().at, time.Second))
}

func (m *master) downAfter() string { return ms(m.timing().Silence.D()) }

func (m *master) roleFields(f *fields, role string) {
	f.add("down-after-milliseconds", m.downAfter())
	f.add("info-refresh", m.pingAge())
	f.add("role-reported", role)
	f.add("role-reported-time", ms(m.s.o.Clock.Uptime()-m.s.began))
}

func (m *master) masterFields(t tell, i instance) fields {
	flags := "master"
	if i.down {
		flags += ",s_down,o_down"
	}
	f := m.common(t, i, flags)
	if i.down {
		f.add("o-down-time", ms(max(i.downFor, time.Millisecond)))
	}
	m.roleFields(&f, "master")
	f.add("config-epoch", fmt.Sprint(m.epoch()))
	f.add("num-slaves", strconv.Itoa(len(m.replicas())))
	f.add("num-other-sentinels", strconv.Itoa(len(m.others())))
	for _, s := range m.settings() {
		f.add(s[0], s[1])
	}
	if p := m.s.o.Scripts.Notification; p != "" {
		f.add("notification-script", p)
	}
	if p := m.s.o.Scripts.Reconfig; p != "" {
		f.add("client-reconfig-script", p)
	}
	return f
}

// settings are those that SENTINEL SET knows beside down-after-milliseconds, with the values that come nearest.
func (m *master) settings() fields {
	_, voters := m.usable()
	return fields{
		{"quorum", strconv.Itoa(voters/2 + 1)},
		{"failover-timeout", ms(m.timing().Park.D())},
		{"parallel-syncs", strconv.Itoa(max(len(m.replicas()), 1))},
	}
}

func (m *master) replicaFields(t tell, r replica, primary instance) fields {
	flags := "slave"
	if r.down {
		flags += ",s_down,disconnected"
	}
	f := m.common(t, r.instance, flags)
	m.roleFields(&f, "slave")
	status := "ok"
	if !r.linkUp {
		status = "err"
	}
	host, port := t.at(primary.addr)
	f.add("master-link-down-time", ms(r.linkDown))
	f.add("master-link-status", status)
	f.add("master-host", host)
	f.add("master-port", port)
	f.add("slave-priority", strconv.Itoa(r.priority))
	f.add("slave-repl-offset", strconv.FormatInt(r.offset, 10))
	f.add("replica-announced", "1")
	return f
}

func (m *master) sentinelFields(t tell, i instance) fields {
	f := m.common(t, i, "sentinel")
	f.add("down-after-milliseconds", m.downAfter())
	f.add("last-hello-message", m.pingAge())
	f.add("voted-leader", "?")
	f.add("voted-leader-epoch", "0")
	return f
}
