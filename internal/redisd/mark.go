// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// markState is what the node knows of commit markers.
type markState struct {
	changes string     // of the latest look: the server's own count of what was written since its last snapshot
	done    wrote      // the latest marker that was written
	at      standpoint // where read was read
	read    topo.Mark
}

// wrote names a marker by what makes the next one superfluous.
type wrote struct {
	runID   string
	epoch   topo.Epoch
	changes string
}

// standpoint is a place at which a frozen server's data do not change.
type standpoint struct {
	runID, replid string
	offset        int64
}

const changesField = "rdb_changes_since_last_save"

// markDB is the database of the marker: the last one of a server with the usual sixteen, so that those who count or list the
// keys of the one that everybody uses do not meet it. On a server with fewer, SELECT is refused, and the marker is in database 0.
const markDB = "15"

// Mark writes the commit marker: see redis.Node. The count of changes is taken in the same transaction, so that a write that
// comes after the marker is not missed.
func (n *Node) Mark(ctx context.Context, m topo.Mark) error {
	n.mu.Lock()
	runID, done := n.runID, n.marks.done
	needed := done != wrote{runID, m.Epoch, n.marks.changes}
	n.mu.Unlock()
	if !needed {
		return nil
	}
	c, err := n.ready(ctx)
	if err != nil {
		return fmt.Errorf("mark the data of %s: %w", n.addr, err)
	}
	write, set, about := n.writeMark(m)
	reps, err := c.do(ctx, write...)
	if err != nil {
		return fmt.Errorf("mark the data of %s: %w", n.addr, err)
	}
	results := reps[len(reps)-1].items
	if len(results) != len(write)-2 || results[set].err() != nil { // refused for want of replicas, memory or disk space: so are clients' writes
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.marks.done = wrote{runID, m.Epoch, parseInfo(results[about].text)[changesField]}
	return nil
}

// writeMark is the transaction that writes a marker, and where in its results are the reply to that and the count of changes.
func (n *Node) writeMark(m topo.Mark) (cmds [][]string, set, about int) {
	info := []string{"INFO", "persistence"}
	if n.cluster != nil {
		return [][]string{{"MULTI"}, {"FUNCTION", "LOAD", "REPLACE", m.Library()}, info, {"EXEC"}}, 0, 1
	}
	return [][]string{{"MULTI"}, {"SELECT", markDB}, {"SET", topo.MarkKey, m.String()}, info, {"SELECT", "0"}, {"EXEC"}}, 1, 2
}

// readMark reads the commit marker of a frozen server, whose data stand still.
func (n *Node) readMark(ctx context.Context, c *conn, m info) error {
	at := m.standpoint()
	n.mu.Lock()
	known := n.marks.at == at
	n.mu.Unlock()
	if known || !m.standsWhole() {
		return nil
	}
	ask, judge := n.markQuestion(m)
	reps, err := c.do(ctx, append(ask, n.d.look("replication")...)...)
	if err != nil {
		return err
	}
	look := reps[len(ask):]
	if firstError(look) != nil {
		return nil
	}
	if last := n.read(look); !last.frozen() || last.position() != m.position() {
		return nil
	}
	read, ok := judge(reps[:len(ask)])
	if !ok {
		return nil // it may not be read here: as if nobody had asked
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.marks.at, n.marks.read = at, read
	return nil
}

// markQuestion is how a server is asked for its marker, and how the replies are read.
func (n *Node) markQuestion(m info) (cmds [][]string, judge func([]reply) (topo.Mark, bool)) {
	if n.cluster != nil {
		return [][]string{{"FUNCTION", "LIST", "LIBRARYNAME", topo.MarkLibrary, "WITHCODE"}}, markOfLibraries
	}
	databases := m.databases()
	cmds = [][]string{{"SELECT", markDB}}
	for _, db := range databases {
		cmds = append(cmds, []string{"SELECT", db}, []string{"GET", topo.MarkKey})
	}
	return append(cmds, []string{"SELECT", "0"}), func(reps []reply) (topo.Mark, bool) { return markOfKeys(databases, reps) }
}

// markOfLibraries reads the marker of a member of a cluster.
func markOfLibraries(reps []reply) (topo.Mark, bool) {
	if reps[0].err() != nil {
		return topo.Mark{}, false
	}
	for _, l := range reps[0].items {
		if read, ok := topo.ParseMarkLibrary(l.pairs()["library_code"]); ok {
			return read, true
		}
	}
	return topo.Mark{}, true
}

// markOfKeys reads the marker of a server by itself. It says something only when it is in its place: a copy in another database (SWAPDB)
// may be older than what the data hold.
func markOfKeys(databases []string, reps []reply) (read topo.Mark, ok bool) {
	copies, place := 0, markDB
	if reps[0].err() != nil {
		place = "0"
	}
	for i, db := range databases {
		get := reps[2*i+2]
		if reps[2*i+1].err() != nil || get.err() != nil {
			return topo.Mark{}, false
		}
		if get.kind != '$' || get.null {
			continue
		}
		copies++
		if found, ok := topo.ParseMark(get.text); ok && db == place {
			read = found
		}
	}
	if copies > 1 {
		read = topo.Mark{}
	}
	return read, true
}

// fillMark adds what is known of the marker to an observation; the caller holds n.mu.
func (n *Node) fillMark(o *redis.Observation, m info) {
	n.marks.changes = m[changesField]
	if !m.standsWhole() || n.marks.at != m.standpoint() {
		return
	}
	read := n.marks.read
	o.Mark = &read
	if read != (topo.Mark{}) && n.cluster == nil {
		o.Keys-- // it is ours
	}
}

// standsWhole: a frozen server whose data are what its marker says. One that loaded an append-only file is not whole() as
// replication sees it, but its data are, unless a sync began since and left a part of another data set.
func (m info) standsWhole() bool {
	return m.frozen() && !m.loading() && (m.whole() || !m.syncing() && m["total_net_repl_input_bytes"] == "0")
}

func (m info) standpoint() standpoint {
	p := m.position()
	return standpoint{m["run_id"], p.ReplID, p.Offset}
}

// databases are those that hold keys.
func (m info) databases() []string {
	var out []string
	for k := range m {
		if db, ok := strings.CutPrefix(k, "db"); ok {
			if _, err := strconv.Atoi(db); err == nil {
				out = append(out, db)
			}
		}
	}
	return out
}
