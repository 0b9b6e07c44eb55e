// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// Reads of the read-write port may go to replicas, if the deployment wants that. A replica is used only for what it provably
// has: every write that was answered before its *cover*. The proxy measures covers itself. It notes the time, then asks the
// primary for its offset, which is not below that of any write that was answered before; a replica that has reached this
// offset covers that time. So a session reads what it wrote, and nothing older than the limit is shown.

const (
	coverInterval = 100 * time.Millisecond
	coverSamples  = 128
)

// cover is what one replica provably has.
type cover struct {
	node  topo.NodeID
	addr  string
	until time.Duration // clock.Uptime: every write that was answered before is there
	trip  time.Duration // of the question
	away  bool          // not in the proxy's zone
}

// nearest orders replicas: those of the proxy's zone come first, then those that answer soonest.
func nearest(a, b cover) int {
	if a.away != b.away {
		if a.away {
			return 1
		}
		return -1
	}
	return cmp.Compare(a.trip, b.trip)
}

// sample is an offset that the primary had reached, and a time before it was asked.
type sample struct {
	at     time.Duration
	offset int64
}

// measure is the goroutine that keeps the covers.
func (p *Proxy) measure() {
	links := map[string]*link{}
	defer func() {
		for _, k := range links {
			_ = k.conn.Close()
		}
	}()
	var samples []sample
	history := ""
	var fit []topo.NodeID
	for p.pause(coverInterval) {
		var covers []cover
		if o, snap := p.order.Load(), p.o.View.Load(); o.t != nil && o.sending && snap != nil {
			now := p.now()
			if m := p.replication(links, o.t.addr); m["role"] == "master" {
				if m["master_replid"] != history {
					samples, history = nil, m["master_replid"]
				}
				if offset, err := strconv.ParseInt(m["master_repl_offset"], 10, 64); err == nil {
					samples = append(samples, sample{now, offset})
					samples = samples[max(0, len(samples)-coverSamples):]
				}
			}
			for _, n := range snap.Shard.Spec.Nodes {
				if n.ID != o.t.node {
					covers = append(covers, p.coverOf(links, n, samples, history)...)
				}
			}
		}
		slices.SortFunc(covers, nearest)
		p.covers.Store(&covers)
		if now := p.fresh(covers); !slices.Equal(now, fit) {
			fit = now
			p.rouse() // a lane may wait for a replica that answers no more
		}
	}
}

// fresh returns the replicas that may be read from, in the order of their ids.
func (p *Proxy) fresh(covers []cover) (nodes []topo.NodeID) {
	for _, c := range covers {
		if p.now()-c.until <= p.o.Staleness {
			nodes = append(nodes, c.node)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// coverOf asks one replica; nothing is returned for one that covers no time.
func (p *Proxy) coverOf(links map[string]*link, n topo.Node, samples []sample, history string) []cover {
	began := p.now()
	m := p.replication(links, n.Addr)
	offset, err := strconv.ParseInt(m["slave_repl_offset"], 10, 64)
	if err != nil || m["role"] != "slave" || m["master_link_status"] != "up" || m["master_sync_in_progress"] != "0" || m["master_replid"] != history {
		return nil
	}
	for _, s := range slices.Backward(samples) {
		if s.offset <= offset {
			return []cover{{n.ID, n.Addr, s.at, p.now() - began, p.o.Zone != "" && n.Zone != p.o.Zone}}
		}
	}
	return nil
}

// replication asks a node for INFO replication, on a connection that is kept; nil when it does not answer.
func (p *Proxy) replication(links map[string]*link, addr string) map[string]string {
	k := links[addr]
	if k == nil {
		var err error
		if k, err = p.errand(addr); err != nil {
			return nil
		}
		links[addr] = k
	}
	err := k.conn.SetDeadline(time.Now().Add(coverInterval))
	var f []byte
	if err == nil {
		_, err = k.conn.Write(resp.AppendCommand(nil, "INFO", "replication"))
	}
	if err == nil {
		f, err = k.frameNow()
	}
	if err != nil {
		_ = k.conn.Close()
		delete(links, addr)
		return nil
	}
	m := map[string]string{}
	for _, name := range []string{"role", "master_replid", "master_repl_offset", "slave_repl_offset", "master_link_status", "master_sync_in_progress"} {
		m[name] = infoField(resp.Text(f), name)
	}
	return m
}

// replicaLane returns the lane of the nearest replica that covers the session's writes and is fresh enough; nil: the primary
// has to answer.
func (s *session) replicaLane() *lane {
	now, wrote := s.p.now(), time.Duration(s.wroteAt.Load())
	for _, c := range *s.p.covers.Load() {
		if c.until <= wrote || now-c.until > s.p.o.Staleness {
			continue
		}
		if s.near == nil || s.near.key.node != c.node || s.near.key.db != s.db || s.near.key.proto != s.proto {
			s.near = s.p.nodeLane(s, c.node)
		}
		return s.near
	}
	return nil
}

// nodeLane returns the lane of the session's loop, protocol and database to one replica.
func (p *Proxy) nodeLane(s *session, node topo.NodeID) *lane {
	lp := s.sock.loop
	key := poolKey{loop: lp.index, proto: s.proto, db: s.db, readonly: true, node: node}
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.pools[key]
	if q == nil {
		l := p.newLane(key, 0)
		l.loop = lp
		q = &pool{lanes: []*lane{l}}
		p.startLane(l)
		p.pools[key] = q
	}
	return q.lanes[0]
}

// covered returns where a lane to one replica should be connected; ok is false when that is the primary, for now.
func (p *Proxy) covered(node topo.NodeID) (to target, ok bool) {
	for _, c := range *p.covers.Load() {
		if c.node == node && p.now()-c.until <= p.o.Staleness {
			return target{node: c.node, addr: c.addr}, true
		}
	}
	return target{}, false
}

// noteWrite remembers that a write of the session was answered.
func (s *session) noteWrite(epoch topo.Epoch) {
	s.wrote.Store(uint64(epoch))
	if s.p.o.SplitReads {
		s.wroteAt.Store(int64(s.p.now()))
	}
}
