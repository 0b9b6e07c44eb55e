// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"redoubt/internal/redis"
)

// What can become of an append-only file on a full disk (observed on redis-server 7.0.15): a write that does not fit is cut
// off again, but in a file that a rewrite began, the server's position in it does not move back. The next write that works
// leaves a hole of zero bytes, the server says that all is well, and the next start ends with "Bad file format".

// aofWatch follows one process's append-only file.
type aofWatch struct {
	scanned int64         // of the server log
	failing bool          // the latest write did not work
	suspect bool          // a write failed, and no rewrite that began later has ended well
	began   bool          // the log says that such a rewrite began
	ordered bool          // we ordered one
	tries   int           // since the file became suspect
	tryAt   time.Duration // uptime before which none is ordered
}

// The pauses between rewrites of a suspect file: each costs a fork and the disk space of the data set.
const (
	rewritePause  = 5 * time.Second
	rewritePauses = 2 * time.Minute
)

// recentBytes is how much of a log a new agent reads: a look must not take long.
const recentBytes = 4 << 20

const suspectSentence = "aof-suspect: a write to the append-only file failed half-way, and a restart may be unable to read it: it is rewritten (BGREWRITEAOF), with pauses until that works"

// failed notes that a write did not work, now or a moment ago. What was ordered or began before may have come too early.
func (w *aofWatch) failed() {
	if !w.suspect {
		w.tries, w.tryAt = 0, 0
	}
	w.suspect, w.began, w.ordered = true, false, false
}

// read follows the server's log, which shows what happened between two looks, and before this agent came. The texts are
// those of Redis 6.2 to 8 and Valkey 7.2 to 8.
func (w *aofWatch) read(line string) {
	switch {
	case aofWriteFailed(line):
		w.failed()
	case strings.Contains(line, "append only file rewriting started by pid"):
		w.began = true
	case strings.Contains(line, "AOF rewrite finished successfully") && w.began:
		w.suspect = false
	}
}

func aofWriteFailed(line string) bool {
	return strings.Contains(line, "Short write while writing to the AOF file") || strings.Contains(line, "Error writing to the AOF file") ||
		strings.Contains(line, "Fail to fsync the AOF file")
}

// look folds one INFO into it.
func (w *aofWatch) look(in info) {
	w.failing = in["aof_last_write_status"] == "err"
	switch {
	case in["aof_enabled"] == "0":
		*w = aofWatch{scanned: w.scanned}
	case w.failing:
		w.failed()
	case w.ordered && !in.aofBusy():
		w.ordered = false
		if in["aof_last_bgrewrite_status"] == "ok" {
			w.suspect = false
		}
	}
}

// watchAOF looks at the append-only file of a process that has loaded. It tells whether a write to it has failed and no
// rewrite that began later has ended well: until then it does not hold everything.
func (m *managed) watchAOF(in info) (suspect bool) {
	log := filepath.Join(m.o.Dir, serverLog)
	m.mu.Lock()
	w := m.aof
	m.mu.Unlock()
	was := w.suspect
	if size := fileSize(log); size > w.scanned {
		eachLogLine(log, max(w.scanned, size-recentBytes), w.read)
		w.scanned = size
	}
	w.look(in)
	m.mu.Lock()
	m.aof = w
	m.mu.Unlock()
	switch {
	case w.suspect && !was:
		m.node.log.Warn("a write to the append-only file failed: it is rewritten when there is space")
	case was && !w.suspect:
		m.node.log.Info("the append-only file is sound again")
	}
	return w.suspect
}

// mendAOF orders the rewrite of a suspect append-only file, once the server can write again. Its outcome is seen by later
// looks; one that failed is ordered again, more and more rarely.
func (m *managed) mendAOF(ctx context.Context, c *conn) {
	now := m.node.clk.Uptime()
	m.mu.Lock()
	due := m.aof.suspect && !m.aof.failing && !m.aof.ordered && now >= m.aof.tryAt
	if due {
		m.aof.tryAt = now + min(rewritePause<<min(m.aof.tries, 6), rewritePauses)
		m.aof.tries++
	}
	m.mu.Unlock()
	if !due {
		return
	}
	reps, err := c.do(ctx, []string{"BGREWRITEAOF"})
	if err == nil {
		err = firstError(reps)
	}
	if err != nil { // also when one from before the failure is under way: it may keep the hole
		m.node.log.Warn("the append-only file is not rewritten yet", "error", err)
		return
	}
	m.mu.Lock()
	m.aof.ordered = true
	m.mu.Unlock()
	m.node.log.Info("rewriting the append-only file, because a write to it had failed")
}

// asideMax is how many unreadable append-only files are kept.
const asideMax = 2

const asideMark = ".unreadable-"

// aofPath is the append-only file, since Redis 7.0 a directory of parts.
func (m *managed) aofPath() string {
	name, directive := "appendonlydir", "appenddirname"
	if m.version < 700 {
		name, directive = "appendonly.aof", "appendfilename"
	}
	for d, v := range m.o.Directives {
		if strings.EqualFold(d, directive) {
			name = strings.Trim(v, `"' `)
		}
	}
	return filepath.Join(m.o.Dir, filepath.Base(name))
}

// asides are the files that were set aside, the oldest first.
func (m *managed) asides() []string {
	found, _ := filepath.Glob(filepath.Join(m.o.Dir, "*"+asideMark+"*"))
	slices.Sort(found)
	return found
}

// noteAsides names what was set aside, until somebody has removed it.
func (m *managed) noteAsides(o *redis.Observation) {
	now := m.node.clk.Uptime()
	m.mu.Lock()
	due := m.asidesAt == 0 || now-m.asidesAt >= settingsFor
	m.mu.Unlock()
	if due {
		found := m.asides()
		m.mu.Lock()
		m.aside, m.asidesAt = found, now
		m.mu.Unlock()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, path := range m.aside {
		o.Problems = append(o.Problems, "aof-aside: the append-only file could not be read at a start and lies at "+path+
			"; the node has its data from the primary instead. redis-check-aof tells what is wrong with it; remove it when nobody needs it")
	}
}

// SetAside moves an append-only file that the server cannot read out of its way: see redis.Node. The seat then says that it
// lacks something (see seatRecord), until it has everything from somebody else.
func (n *Node) SetAside(context.Context) (string, error) {
	m := n.managed
	if m == nil {
		return "", fmt.Errorf("set the append-only file of %s aside: %w: it belongs to another supervisor", n.addr, redis.ErrRefused)
	}
	if p := n.process(); p == nil || !p.exited() || !m.ending(p).unreadable {
		return "", fmt.Errorf("set the append-only file of %s aside: %w: its server did not end because it cannot read it", n.addr, redis.ErrRefused)
	}
	from := m.aofPath()
	to := from + asideMark + n.clk.Now().UTC().Format("20060102T150405.000Z")
	if _, err := os.Lstat(to); err == nil {
		return "", fmt.Errorf("set %s aside: %w: %s is there already", from, redis.ErrRefused, to)
	}
	m.mu.Lock()
	seat := m.seat
	seat.Lacking = true
	m.mu.Unlock()
	if err := saveJSON(m.o.Dir, seatFile, seat); err != nil { // first: what is not there any more must never count as kept
		return "", fmt.Errorf("set %s aside: %w", from, err)
	}
	m.mu.Lock()
	m.seat, m.asidesAt = seat, 0
	m.mu.Unlock()
	if err := os.Rename(from, to); err != nil {
		return "", fmt.Errorf("set the append-only file aside: %w", err)
	}
	old := m.asides()
	var errs []error
	for len(old) > asideMax {
		errs = append(errs, os.RemoveAll(old[0]))
		old = old[1:]
	}
	if err := errors.Join(errs...); err != nil {
		n.log.Warn("an unreadable append-only file of an earlier time could not be removed", "error", err)
	}
	n.log.Error("the append-only file cannot be read: set aside, the server starts empty", "file", to)
	return to, nil
}
