// SPDX-License-Identifier: Apache-2.0

package proxy

import "slices"

// What sessions put into a lane.

// push queues a session's commands: chunk holds their bytes one behind the other. errParkFull: nothing was queued,
// because there is no primary and the parking limits are reached. On the loop, errFull takes the place of waiting for room.
func (l *lane) push(s *session, chunk []byte, items []item, onLoop bool) error {
	if l.p.o.ReadConsistency == ReadLease {
		l.coverReads(items)
	}
	l.mu.Lock()
	for l.up && (len(l.pend.buf) > batchBytesMax || len(l.queue) > groupsQueued && l.ex != nil) && !l.closed {
		if onLoop {
			l.mu.Unlock()
			return errFull
		}
		l.room.Wait()
	}
	if l.closed {
		l.mu.Unlock()
		return errClosed
	}
	if t := l.st.txn; t != nil && t.broken && (items[0].op == opQueued || items[0].op.ends()) {
		l.mu.Unlock()
		return errBroken
	}
	var at uint32
	if !l.up {
		if !l.p.budget.room(int64(len(items)), int64(len(chunk))) {
			l.mu.Unlock()
			return errParkFull
		}
		at = l.p.stamp()
		l.hold(int64(len(items)), int64(len(chunk)))
		l.p.stats.parked.Add(uint64(len(items)))
	}
	s.inflight.Add(int64(len(items)))
	if s.redo.Load() > 0 || len(l.redo) > 0 && l.key.own {
		l.pushRedo(s, chunk, items, at)
	} else {
		l.pushPend(s, chunk, items, at)
	}
	l.mu.Unlock()
	if onLoop {
		l.loop.touched(l)
	} else {
		l.nudge()
	}
	return nil
}

func (l *lane) pushPend(s *session, chunk []byte, items []item, at uint32) {
	for _, it := range items {
		if it.flags&fence != 0 && l.pend.wants || it.flags&commits != 0 && l.pend.told {
			l.queue = append(l.queue, l.pend)
			l.pend = l.p.newBatch()
		}
		if l.ex != nil && len(l.pend.ents) >= groupMax {
			l.queue = append(l.queue, l.pend)
			l.pend = l.newBatch()
		}
		b, command := l.pend, chunk[:it.n]
		chunk = chunk[it.n:]
		if l.key.own {
			command = l.st.pushed(&it, command)
			b.cache(it.flags)
		}
		s.seq++
		b.ents = append(b.ents, entry{s: s, x: it.x, off: uint32(len(b.buf)), n: uint32(len(command)), seq: s.seq, at: at, flags: it.flags, op: it.op})
		b.buf = append(b.buf, command...)
		b.wants = b.wants || it.flags&commits != 0
		b.scans = b.scans || it.op == opScan
		b.told = b.told || it.op == opSubscribe || it.op == opUnsubscribe
	}
}

// pushRedo queues behind commands of the same session that have to be sent again first.
func (l *lane) pushRedo(s *session, chunk []byte, items []item, at uint32) {
	if at == 0 {
		at = l.p.stamp()
		l.hold(int64(len(items)), int64(len(chunk)))
	}
	for _, it := range items {
		command := chunk[:it.n]
		chunk = chunk[it.n:]
		if l.key.own {
			command = l.st.pushed(&it, command)
		}
		s.seq++
		s.redo.Add(1)
		e := entry{s: s, x: it.x, n: uint32(len(command)), seq: s.seq, at: at, flags: it.flags, op: it.op}
		e.need().data = slices.Clone(command)
		l.redo = append(l.redo, e)
	}
}

// hold keeps the account of what is parked; the caller holds l.mu.
func (l *lane) hold(commands, bytes int64) {
	l.held += commands
	l.heldMem += bytes
	l.p.budget.add(commands, bytes)
}

// recount puts the account right after commands have left the queues; the caller holds l.mu.
func (l *lane) recount() {
	commands, bytes := int64(0), int64(0)
	add := func(ents []entry) {
		for i := range ents {
			if ents[i].at != 0 {
				commands++
				bytes += int64(ents[i].n)
				if ents[i].x != nil {
					bytes += int64(len(ents[i].x.ran))
				}
			}
		}
	}
	add(l.redo)
	add(l.pend.ents)
	for _, b := range l.queue {
		add(b.ents)
	}
	l.hold(commands-l.held, bytes-l.heldMem)
}
