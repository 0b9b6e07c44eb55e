// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"net"
	"strconv"
	"strings"

	"redoubt/internal/topo"
)

// deadHost and deadPort are the dead address: accepted by REPLICAOF, connecting is refused at once, and nothing can ever
// listen there (SAFETY B1).
const (
	deadHost = "127.0.0.1"
	deadPort = "0"
)

// info is a parsed INFO reply. The field names are those of Redis 6.2 to 8 and Valkey 7.2 to 9, which kept "master"
// and "slave" in INFO.
type info map[string]string

func parseInfo(text string) info {
	m := make(info, 160)
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if k, v, ok := strings.Cut(line, ":"); ok && k[0] != '#' {
			m[k] = v
		}
	}
	return m
}

func (m info) num(k string) int64 {
	n, _ := strconv.ParseInt(m[k], 10, 64)
	return n
}

func (m info) role() topo.Role {
	switch m["role"] {
	case "master":
		return topo.RolePrimary
	case "slave":
		return topo.RoleReplica
	}
	return topo.RoleUnknown
}

func (m info) position() topo.Position {
	p := topo.Position{ReplID: m["master_replid"], Offset: m.num("master_repl_offset"), ReplID2: m["master_replid2"], Offset2: m.num("second_repl_offset")}
	if strings.Trim(p.ReplID2, "0") == "" {
		p.ReplID2, p.Offset2 = "", -1
	}
	return p
}

func (m info) frozen() bool {
	return m.role() == topo.RoleReplica && m["master_host"] == deadHost && m["master_port"] == deadPort
}

// following is the address that the server replicates from; empty for a primary and for a frozen server.
func (m info) following() string {
	if m.role() != topo.RoleReplica || m.frozen() {
		return ""
	}
	return net.JoinHostPort(m["master_host"], m["master_port"])
}

// replicas are the addresses of those who replicate from this server, connected or not yet:
// "slave0:ip=127.0.0.1,port=6380,state=online,offset=14,lag=0".
func (m info) replicas() []string {
	var out []string
	for i := 0; ; i++ {
		line, ok := m["slave"+strconv.Itoa(i)]
		if !ok {
			return out
		}
		f := map[string]string{}
		for pair := range strings.SplitSeq(line, ",") {
			k, v, _ := strings.Cut(pair, "=")
			f[k] = v
		}
		out = append(out, net.JoinHostPort(f["ip"], f["port"]))
	}
}

func (m info) linkUp() bool { return m["master_link_status"] == "up" }

func (m info) syncing() bool { return m["master_sync_in_progress"] == "1" }

func (m info) loading() bool { return m["loading"] == "1" || m["async_loading"] == "1" }

// whole: see redis.Observation. A replica without a cached primary reports slave_repl_offset 1 or less (SAFETY C3).
func (m info) whole() bool {
	if m.loading() || m.syncing() {
		return false
	}
	return m.role() == topo.RolePrimary || m["slave_repl_offset"] == m["master_repl_offset"]
}

func (m info) aofBusy() bool {
	return m["aof_rewrite_in_progress"] == "1" || m["aof_rewrite_scheduled"] == "1"
}

// keys sums all databases: "db0:keys=12,expires=0,avg_ttl=0".
func (m info) keys() int64 {
	var sum int64
	for k, v := range m {
		if len(k) < 3 || k[:2] != "db" || k[2] < '0' || k[2] > '9' {
			continue
		}
		first, _, _ := strings.Cut(v, ",")
		n, _ := strconv.ParseInt(strings.TrimPrefix(first, "keys="), 10, 64)
		sum += n
	}
	return sum
}

// version is the server's own version; Valkey keeps redis_version at 7.2.4 for old clients.
func (m info) version() string {
	if v := m["valkey_version"]; v != "" {
		return "valkey " + v
	}
	return "redis " + m["redis_version"]
}

// major is the Redis-compatible version as major × 100 + minor: 602 for 6.2.
func (m info) major() int { return versionNumber(m["redis_version"]) }

func versionNumber(v string) int {
	major, rest, _ := strings.Cut(v, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, _ := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	return a*100 + b
}

// problems names the troubles that the server itself reports.
func (m info) problems(cfg map[string]string) []string {
	var out []string
	if m["rdb_last_bgsave_status"] == "err" && cfg["stop-writes-on-bgsave-error"] == "yes" && cfg["save"] != "" {
		out = append(out, "disk-full: the last background save did not work and the server refuses writes (MISCONF): free disk space or mend the data directory")
	}
	if m["aof_last_write_status"] == "err" {
		out = append(out, "disk-full: the last write to the append-only file did not work and the server refuses writes (MISCONF): free disk space")
	}
	used := m.num("used_memory") - m.num("mem_not_counted_for_evict")
	if limit := m.num("maxmemory"); limit > 0 && used > limit && m["maxmemory_policy"] == "noeviction" {
		out = append(out, "oom: "+strconv.FormatInt(used, 10)+" bytes are used, maxmemory is "+strconv.FormatInt(limit, 10)+" and nothing may be evicted: raise maxmemory or delete data")
	}
	if m.aofBusy() {
		out = append(out, "aof-rewrite: the append-only file is being rewritten")
	}
	return out
}

func portOfAddr(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}
