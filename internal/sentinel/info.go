// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// info answers INFO [section …] with the sections that a Sentinel has.
func (se *session) info(_ context.Context, args []string) {
	all := len(args) == 1
	wanted := map[string]bool{}
	for _, a := range args[1:] {
		name := strings.ToLower(a)
		all = all || name == "default" || name == "all" || name == "everything"
		wanted[name] = true
	}
	var b strings.Builder
	for _, section := range []struct {
		name string
		text func() string
	}{
		{"server", se.s.infoServer}, {"clients", se.s.infoClients}, {"stats", se.s.infoStats}, {"cpu", se.s.infoCPU}, {"sentinel", se.infoSentinel},
	} {
		if all || wanted[section.name] {
			if b.Len() > 0 {
				b.WriteString("\r\n")
			}
			b.WriteString(section.text())
		}
	}
	se.bulk(b.String())
}

// lines are "name:value" pairs under a heading.
func lines(heading string, pairs ...any) string {
	var b strings.Builder
	b.WriteString("# " + heading + "\r\n")
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(&b, "%v:%v\r\n", pairs[i], pairs[i+1])
	}
	return b.String()
}

func (s *Server) infoServer() string {
	_, port := tell{}.at(s.ln.Addr().String())
	up := int64((s.o.Clock.Uptime() - s.began).Seconds())
	return lines("Server", "redis_version", compatible, "redis_git_sha1", "00000000", "redis_git_dirty", 0, "redis_build_id", "0000000000000000",
		"redis_mode", "sentinel", "redoubt_version", s.o.Version, "os", "Linux", "arch_bits", 64, "monotonic_clock", "POSIX clock_gettime",
		"multiplexing_api", "epoll", "process_id", os.Getpid(), "process_supervised", "no", "run_id", s.runID, "tcp_port", port,
		"server_time_usec", s.o.Clock.Now().UnixMicro(), "uptime_in_seconds", up, "uptime_in_days", up/86400, "hz", 10, "configured_hz", 10,
		"executable", os.Args[0], "config_file", "")
}

func (s *Server) infoClients() string {
	return lines("Clients", "connected_clients", s.hub.count(), "cluster_connections", 0, "maxclients", clientsMax, "blocked_clients", 0,
		"tracking_clients", 0, "clients_in_timeout_table", 0)
}

func (s *Server) infoStats() string {
	channels, patterns := map[string]bool{}, map[string]bool{}
	s.hub.each(func(se *session) {
		se.mu.Lock()
		defer se.mu.Unlock()
		for c := range se.channels {
			channels[c] = true
		}
		for p := range se.patterns {
			patterns[p] = true
		}
	})
	return lines("Stats", "total_connections_received", s.nextID.Load(), "total_commands_processed", s.commands.Load(), "rejected_connections", s.rejected.Load(),
		"pubsub_channels", len(channels), "pubsub_patterns", len(patterns))
}

func (s *Server) infoCPU() string {
	var own, children syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &own) // they cannot fail with these arguments
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &children)
	seconds := func(t syscall.Timeval) string { return fmt.Sprintf("%.6f", time.Duration(t.Nano()).Seconds()) }
	return lines("CPU", "used_cpu_sys", seconds(own.Stime), "used_cpu_user", seconds(own.Utime),
		"used_cpu_sys_children", seconds(children.Stime), "used_cpu_user_children", seconds(children.Utime))
}

func (se *session) infoSentinel() string {
	running, queued := se.s.scripts.counts()
	var b strings.Builder
	n := 0
	for _, m := range se.s.masters {
		p, ok := m.primary()
		if !ok {
			continue
		}
		status := "ok"
		if p.down {
			status = "odown"
		}
		fmt.Fprintf(&b, "master%d:name=%s,status=%s,address=%s,slaves=%d,sentinels=%d\r\n", n, p.name, status, se.tell().addr(p.addr), len(m.replicas()), len(m.others())+1)
		n++
	}
	return lines("Sentinel", "sentinel_masters", n, "sentinel_tilt", 0, "sentinel_tilt_since_seconds", -1, "sentinel_running_scripts", running,
		"sentinel_scripts_queue_length", queued, "sentinel_simulate_failure_flags", 0) + b.String()
}
