// SPDX-License-Identifier: Apache-2.0

package front

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// summed are the fields of INFO that are sums over the shards. All others are the home shard's.
const summed = ` blocked_clients tracking_clients clients_in_timeout_table used_memory used_memory_rss used_memory_peak used_memory_overhead
 used_memory_startup used_memory_dataset used_memory_lua used_memory_vm_eval used_memory_scripts_eval number_of_cached_scripts
 number_of_functions number_of_libraries used_memory_vm_functions used_memory_vm_total used_memory_functions used_memory_scripts maxmemory
 mem_clients_normal mem_clients_slaves mem_replication_backlog mem_aof_buffer lazyfree_pending_objects lazyfreed_objects
 rdb_changes_since_last_save total_connections_received total_commands_processed instantaneous_ops_per_sec total_net_input_bytes
 total_net_output_bytes instantaneous_input_kbps instantaneous_output_kbps rejected_connections sync_full sync_partial_ok sync_partial_err
 expired_keys evicted_keys evicted_clients keyspace_hits keyspace_misses pubsub_channels pubsubshard_channels total_forks tracking_total_keys
 tracking_total_items unexpected_error_replies total_error_replies dump_payload_sanitizations total_reads_processed total_writes_processed
 connected_slaves used_cpu_sys used_cpu_user used_cpu_sys_children used_cpu_user_children `

// memories are shown for people, too, in a field of their own.
const memories = ` used_memory_human used_memory_rss_human used_memory_peak_human used_memory_lua_human used_memory_scripts_human
 used_memory_vm_total_human maxmemory_human `

// section says whether INFO shows the section of the shards.
type section uint8

const (
	sectionNone section = iota
	sectionToo          // behind the others
	sectionOnly
)

// shardSection returns what an INFO asks for.
func shardSection(args [][]byte) section {
	switch {
	case len(args) == 2 && route.Is(args[1], "SHARDS"):
		return sectionOnly
	case len(args) == 1:
		return sectionToo
	}
	for _, a := range args[1:] {
		if route.Is(a, "DEFAULT") || route.Is(a, "ALL") || route.Is(a, "EVERYTHING") || route.Is(a, "SHARDS") {
			return sectionToo
		}
	}
	return sectionNone
}

// infoCommand returns what the shards are asked for an INFO: their own sections, too, for that of the shards.
func infoCommand(args [][]byte, raw []byte) []byte {
	if shardSection(args) == sectionOnly {
		return resp.AppendCommand(nil, "INFO")
	}
	return raw
}

// mergedInfo makes one INFO of those of all shards: an ordinary one, as of one server, with a line per shard at its end.
func (c *client) mergedInfo(dst []byte, parts []*conn, frames [][]byte, show section) []byte {
	texts := make([]map[string]string, len(frames))
	for i, f := range frames {
		texts[i] = fieldsOf(string(resp.Text(f)))
	}
	var b strings.Builder
	if show != sectionOnly {
		c.mergeLines(&b, string(resp.Text(frames[0])), texts)
	}
	if show == sectionToo {
		b.WriteString("\r\n")
	}
	if show != sectionNone {
		fmt.Fprintf(&b, "# Shards\r\nshards:%d\r\n", len(parts))
		for i, k := range parts {
			t := texts[i]
			fmt.Fprintf(&b, "shard_%s:role=%s,run_id=%s,keys=%d,used_memory=%s,ops_per_sec=%s\r\n", k.name(), t["role"], t["run_id"], keysIn(t), t["used_memory"], t["instantaneous_ops_per_sec"])
		}
	}
	return appendText(dst, c.vis.protoNow(), b.String())
}

// mergeLines writes the home shard's lines with the values of all.
func (c *client) mergeLines(b *strings.Builder, text string, texts []map[string]string) {
	for line := range strings.SplitAfterSeq(text, "\r\n") {
		name, value, found := strings.Cut(strings.TrimSuffix(line, "\r\n"), ":")
		switch {
		case !found || strings.HasPrefix(line, "#"):
			b.WriteString(line)
		case !isKeyspace(name):
			b.WriteString(name + ":" + c.merged(name, value, texts) + "\r\n")
		}
		if line == "# Keyspace\r\n" {
			databases(b, texts)
		}
	}
}

// fieldsOf reads the lines of an INFO.
func fieldsOf(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.SplitSeq(text, "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, "#") {
			m[name] = value
		}
	}
	return m
}

func listed(list, name string) bool {
	return strings.Contains(strings.ReplaceAll(list, "\n", " "), " "+name+" ")
}

// merged returns the value of a field over all shards.
func (c *client) merged(name, value string, texts []map[string]string) string {
	switch {
	case c.f.o.Cluster != nil && !c.f.speaksCluster() && name == "redis_mode":
		return "standalone"
	case c.f.o.Cluster != nil && !c.f.speaksCluster() && name == "cluster_enabled":
		return "0"
	case name == "connected_clients":
		return strconv.Itoa(c.f.Stats().Clients)
	case name == "loading":
		for _, t := range texts {
			if t[name] == "1" {
				return "1"
			}
		}
	case listed(summed, name):
		return sumOf(name, texts)
	case listed(memories, name):
		n, _ := strconv.ParseFloat(sumOf(strings.TrimSuffix(name, "_human"), texts), 64)
		return human(n)
	case strings.HasPrefix(name, "errorstat_"):
		return pairsOf(name, value, texts)
	}
	return value
}

func isKeyspace(name string) bool {
	_, err := strconv.Atoi(strings.TrimPrefix(name, "db"))
	return strings.HasPrefix(name, "db") && err == nil
}

func sumOf(name string, texts []map[string]string) string {
	total, digits := 0.0, 0
	for _, t := range texts {
		n, _ := strconv.ParseFloat(t[name], 64)
		total += n
		if _, after, ok := strings.Cut(t[name], "."); ok {
			digits = max(digits, len(after))
		}
	}
	return strconv.FormatFloat(total, 'f', digits, 64)
}

// pairsOf adds what stands behind the equals signs: keys=1,expires=0,avg_ttl=0. An average is weighted by the keys that expire.
func pairsOf(name, pattern string, texts []map[string]string) string {
	var out []string
	for pair := range strings.SplitSeq(pattern, ",") {
		field, _, _ := strings.Cut(pair, "=")
		total, weights := int64(0), int64(0)
		for _, t := range texts {
			n, w := pairIn(t[name], field), int64(1)
			if field == "avg_ttl" {
				w = pairIn(t[name], "expires")
			}
			total += n * w
			weights += w
		}
		if field == "avg_ttl" {
			total /= max(weights, 1)
		}
		out = append(out, field+"="+strconv.FormatInt(total, 10))
	}
	return strings.Join(out, ",")
}

func pairIn(value, field string) int64 {
	for pair := range strings.SplitSeq(value, ",") {
		if name, v, ok := strings.Cut(pair, "="); ok && name == field {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

// databases writes the keyspace lines of all shards.
func databases(b *strings.Builder, texts []map[string]string) {
	seen := map[string]string{}
	for _, t := range texts {
		for name, value := range t {
			if isKeyspace(name) {
				seen[name] = value
			}
		}
	}
	names := slices.Collect(maps.Keys(seen))
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	for _, name := range names {
		b.WriteString(name + ":" + pairsOf(name, seen[name], texts) + "\r\n")
	}
}

func keysIn(t map[string]string) int64 {
	n := int64(0)
	for name, value := range t {
		if isKeyspace(name) {
			n += pairIn(value, "keys")
		}
	}
	return n
}

// human is the server's way to show bytes.
func human(n float64) string {
	for _, unit := range []string{"B", "K", "M", "G", "T"} {
		switch {
		case unit == "B" && n < 1024:
			return strconv.FormatFloat(n, 'f', 0, 64) + unit
		case n < 1024 || unit == "T":
			return strconv.FormatFloat(n, 'f', 2, 64) + unit
		}
		n /= 1024
	}
	return ""
}
