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
	if n.cluster != nil {
		return nil // there is one database, whose every key belongs to a slot: it has no place for a marker
	}
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
	reps, err := c.do(ctx, []string{"MULTI"}, []string{"SELECT", markDB}, []string{"SET", topo.MarkKey, m.String()}, []string{"INFO", "persistence"}, []string{"SELECT", "0"}, []string{"EXEC"})
	if err != nil {
		return fmt.Errorf("mark the data of %s: %w", n.addr, err)
	}
	results := reps[5].items
	if len(results) != 4 || results[1].err() != nil { // refused for want of replicas, memory or disk space: so are clients' writes
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.marks.done = wrote{runID, m.Epoch, parseInfo(results[2].text)[changesField]}
	return nil
}

// readMark reads the commit marker of a frozen server, whose data stand still. It says something only when it is in its place: a
// copy in another database (SWAPDB) may be older than what the data hold.
func (n *Node) readMark(ctx context.Context, c *conn, m info) error {
	if n.cluster != nil {
		return nil
	}
	at := m.standpoint()
	n.mu.Lock()
	known := n.marks.at == at
	n.mu.Unlock()
	if known || !m.standsWhole() {
		return nil
	}
	databases := m.databases()
	cmds := [][]string{{"SELECT", markDB}}
	for _, db := range databases {
		cmds = append(cmds, []string{"SELECT", db}, []string{"GET", topo.MarkKey})
	}
	cmds = append(cmds, []string{"SELECT", "0"}, []string{"INFO", "replication"})
	reps, err := c.do(ctx, cmds...)
	if err != nil {
		return err
	}
	if last := parseInfo(reps[len(reps)-1].text); !last.frozen() || last.position() != m.position() {
		return nil
	}
	var read topo.Mark
	copies, place := 0, markDB
	if reps[0].err() != nil {
		place = "0"
	}
	for i, db := range databases {
		get := reps[2*i+2]
		if reps[2*i+1].err() != nil || get.err() != nil {
			return nil // it may not be read here: as if nobody had asked
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
	n.mu.Lock()
	defer n.mu.Unlock()
	n.marks.at, n.marks.read = at, read
	return nil
}

// fillMark adds what is known of the marker to an observation; the caller holds n.mu.
func (n *Node) fillMark(o *redis.Observation, m info) {
	n.marks.changes = m[changesField]
	if n.cluster != nil && m.standsWhole() {
		o.Mark = &topo.Mark{} // there is none
		return
	}
	if !m.standsWhole() || n.marks.at != m.standpoint() {
		return
	}
	read := n.marks.read
	o.Mark = &read
	if read != (topo.Mark{}) {
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
