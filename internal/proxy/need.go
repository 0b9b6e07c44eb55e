// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// need is what has to be true of a write before its reply is delivered. The zero value: nothing, the primary's word is enough.
type need struct {
	acks int  // replicas that hold it
	disk bool // it is on the disks of these and of the primary
}

// acked is how far an acknowledgement has come.
type acked struct {
	replicas int
	local    bool // it is on the primary's disk
}

func (n need) nothing() bool { return n == need{} }

// strongerThan reports whether what m asks for is not enough for n.
func (n need) strongerThan(m need) bool { return n.acks > m.acks || n.disk && !m.disk }

// withheld reports whether the replies of the batch wait for an acknowledgement.
func (b *batch) withheld() bool { return !b.need.nothing() }

// diskSlice is how many milliseconds one WAITAOF asks.
const diskSlice = "100"

// appendWait appends the question whether it is true, of waits commands. It has to come behind a marker on the same connection.
//
// A replica says what is on its disk when it is asked, and once a second. Asked by a WAITAOF right behind a write, it answers before
// it has synced that write, and the next word comes a second later. So it is first asked, by WAIT, whether it has the write at all:
// it sends that answer behind the sync, and what it answers to WAITAOF then is up to date.
func (n need) appendWait(b []byte) []byte {
	k := strconv.Itoa(n.acks)
	b = resp.AppendCommand(b, "WAIT", k, waitSlice)
	if n.disk {
		b = resp.AppendCommand(b, "WAITAOF", "1", k, diskSlice)
	}
	return b
}

// waits is how many replies the question gets; the last one is the answer.
func (n need) waits() int {
	if n.disk {
		return 2
	}
	return 1
}

// read reads the answer; ok is false when it is none.
func (n need) read(f []byte) (got acked, ok bool) {
	if !n.disk {
		r, ok := resp.Int(f)
		return acked{replicas: int(r)}, ok
	}
	if f[0] != '*' {
		return acked{}, false
	}
	var room [2][]byte
	e := resp.Elements(f, room[:0])
	if len(e) != 2 {
		return acked{}, false
	}
	local, ok1 := resp.Int(e[0])
	replicas, ok2 := resp.Int(e[1])
	return acked{replicas: int(replicas), local: local > 0}, ok1 && ok2
}

// met reports whether that is enough.
func (n need) met(got acked) bool { return got.replicas >= n.acks && (got.local || !n.disk) }

// short says how far a write came that was not acknowledged in time.
func (n need) short(got acked, after time.Duration) string {
	if !n.disk {
		return fmt.Sprintf("the write was applied by the primary, but only %d of %d replicas acknowledged it within %s", got.replicas, n.acks, after)
	}
	own := "on the primary's disk"
	if !got.local {
		own = "not on the primary's disk"
	}
	return fmt.Sprintf("the write was applied by the primary, but within %s it was %s, and on the disks of %d of %d replicas", after, own, got.replicas, n.acks)
}

// promise is the durability that an order stands for, as clients say it.
func (n need) promise() string {
	switch {
	case n.disk:
		return "quorum+disk"
	case n.acks > 0:
		return "quorum"
	}
	return "async"
}

// guarded refuses what would take the truth from the servers' word about their disks, where that word is relied on.
func (p *Proxy) guarded(v route.Verdict, args [][]byte) route.Verdict {
	if v.Class == route.Write && v.Row.Care == route.Everywhere && p.order.Load().need.disk && route.ChangesSyncing(args) {
		v.Class, v.Why = route.Forbidden, "ERR CONFIG SET of this setting is refused: durability quorum+disk needs appendonly yes, appendfsync always and no-appendfsync-on-rewrite no"
	}
	return v
}

// errNoDisk: the primary cannot say what is on its disk, so that a write there could never be acknowledged.
var errNoDisk = errors.New("the primary cannot confirm what is on its disk")

// diskQuestion is asked in the greeting, before any write: it is answered at once where the question can be answered at all.
func diskQuestion(out []byte) []byte { return resp.AppendCommand(out, "WAITAOF", "1", "0", "1") }

// asksDisk reports whether a connection has to be able to ask for what is on disk.
func (l *lane) asksDisk(to target) bool {
	return to.t != nil && !l.readsOnly && l.errand == "" && !l.key.readonly && l.p.order.Load().need.disk
}

// judgeDisk reads the answer to diskQuestion.
func judgeDisk(s *serverInfo, f []byte) error {
	if why := redis.ConfirmsDisk(s.name + " " + s.version); why != "" {
		return fmt.Errorf("%w: %s", errNoDisk, why)
	}
	if f[0] == '-' {
		return fmt.Errorf("%w, and durability is quorum+disk: %s", errNoDisk, resp.Text(f))
	}
	return nil
}

// noteDisk remembers, and says once, why the primary takes no writes; nil: it does.
func (p *Proxy) noteDisk(to target, err error) {
	if err == nil {
		p.noDisk.Store(nil)
		return
	}
	text := fmt.Sprintf("%s: %v", to.node, err)
	if old := p.noDisk.Swap(&text); old == nil || *old != text {
		p.log.Error("writes are held, and refused when that takes too long", "node", to.node, "err", err)
	}
}

// why says why commands wait.
func (p *Proxy) why(o *order) string {
	if t := p.noDisk.Load(); t != nil && o.sending && o.need.disk {
		return *t
	}
	return o.why
}

// awaitReplicas gives the primary a moment until it has the replicas without which it refuses writes. They attach within
// milliseconds of a promotion, and in the middle of a pipeline: a write that was refused cannot be sent again once a later one
// of its session has run.
func (k *link) awaitReplicas(info []byte) error {
	want := k.l.p.order.Load().need.acks
	if k.to.t == nil || k.l.readsOnly {
		return nil
	}
	for until := time.Now().Add(replicasPatience); ; {
		have, err := strconv.Atoi(infoField(info, "min_slaves_good_slaves"))
		if err != nil || have >= want || !time.Now().Before(until) {
			return nil // without them it can still be read
		}
		k.l.p.o.Clock.Nap(redoWaitMin)
		if _, err := k.conn.Write(resp.AppendCommand(nil, "INFO", "replication")); err != nil {
			return err
		}
		f, err := k.frameNow()
		if err != nil {
			return err
		}
		info = resp.Text(f)
	}
}
