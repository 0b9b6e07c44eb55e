// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"fmt"
	"os"
	"strings"
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
		{"server", se.s.infoServer}, {"clients", se.s.infoClients}, {"cpu", func() string { return "# CPU\r\n" }},
		{"stats", func() string { return "# Stats\r\n" }}, {"sentinel", se.s.infoSentinel},
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

func (s *Server) infoServer() string {
	_, port := split(s.ln.Addr().String())
	up := int64((s.o.Clock.Uptime() - s.began).Seconds())
	return fmt.Sprintf("# Server\r\nredis_version:%s\r\nredis_mode:sentinel\r\nredoubt_version:%s\r\nprocess_id:%d\r\nrun_id:%s\r\ntcp_port:%s\r\nuptime_in_seconds:%d\r\nuptime_in_days:%d\r\n",
		compatible, s.o.Version, os.Getpid(), s.runID, port, up, up/86400)
}

func (s *Server) infoClients() string {
	return fmt.Sprintf("# Clients\r\nconnected_clients:%d\r\nmaxclients:%d\r\nblocked_clients:0\r\n", s.hub.count(), clientsMax)
}

func (s *Server) infoSentinel() string {
	var b strings.Builder
	p, ok := s.primary()
	n := 0
	if ok {
		n = 1
	}
	fmt.Fprintf(&b, "# Sentinel\r\nsentinel_masters:%d\r\nsentinel_tilt:0\r\nsentinel_tilt_since_seconds:-1\r\nsentinel_running_scripts:0\r\nsentinel_scripts_queue_length:0\r\nsentinel_simulate_failure_flags:0\r\n", n)
	if ok {
		status := "ok"
		if p.down {
			status = "odown"
		}
		fmt.Fprintf(&b, "master0:name=%s,status=%s,address=%s:%s,slaves=%d,sentinels=%d\r\n", p.name, status, p.ip, p.port, len(s.replicas()), len(s.others())+1)
	}
	return b.String()
}
