// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"redoubt/internal/reshard"
)

// lanesMost bounds the connections on which a primary is told of slots at once.
const lanesMost = 32

// session is what is open between two shards. It ends when anything unexpected happens, and when a primary is another one.
type session struct {
	o        *Options
	name     string // of its connections
	from, to Shard
	others   []Node // primaries of all other shards
	src, tgt *link
	stream   *listener
	peers    map[string]*link              // to all others, by address
	lanes    map[string][]*link            // further ones to both primaries, by address
	epoch    uint64                        // of the source, by its own word
	heard    view                          // of the target, when it was last asked: what it knows of epochs never becomes less
	fieldTTL bool                          // the source knows times to live of a hash's fields
	told     struct{ source, target bool } // the server has its replicas know of SETSLOT first, and acts on marks by itself: Valkey from 8.0 on
}

func (s *session) same(from, to Shard) bool {
	return s.from.Primary == from.Primary && s.to.Primary == to.Primary && tenure(s.from) == tenure(from) && tenure(s.to) == tenure(to)
}

func (s *session) close() {
	if s == nil {
		return
	}
	s.stream.close()
	s.src.close()
	s.tgt.close()
	for _, l := range s.peers {
		l.close()
	}
	for _, some := range s.lanes {
		for _, l := range some {
			l.close()
		}
	}
}

// order has a primary carry out CLUSTER SETSLOT for some slots. Where its replicas are told first (told), each command waits for them, a millisecond or
// several: they are given on several connections, where they wait beside each other.
func (s *session) order(ctx context.Context, to *link, told bool, slots []int, words ...string) error {
	if len(slots) == 0 {
		return nil
	}
	if !told || len(slots) == 1 {
		addSetSlots(to, slots, words)
		_, err := to.must(ctx)
		return err
	}
	n := min(len(slots), lanesMost)
	for len(s.lanes[to.addr]) < n {
		l, err := s.dial(ctx, to.addr)
		if err != nil {
			return err
		}
		s.lanes[to.addr] = append(s.lanes[to.addr], l)
	}
	errs := make([]error, n)
	var all sync.WaitGroup
	for i, l := range s.lanes[to.addr][:n] {
		all.Go(func() {
			addSetSlots(l, slots[i*len(slots)/n:(i+1)*len(slots)/n], words)
			_, errs[i] = l.must(ctx)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// ask asks a server that may not be there: then the error says so, and the next question connects again.
func (s *session) ask(ctx context.Context, n Node, collect func(*link)) ([]reply, error) {
	l := s.peers[n.Addr]
	if l == nil {
		var err error
		if l, err = s.dial(ctx, n.Addr); err != nil {
			return nil, err
		}
		s.peers[n.Addr] = l
	}
	collect(l)
	reps, err := l.round(ctx)
	if err != nil {
		l.close()
		delete(s.peers, n.Addr)
		return nil, err
	}
	return reps, l.firstError(reps)
}

// open connects to both primaries, and ends the connections of an earlier mover of these shards: what it has sent and was not yet
// carried out must not come later than what this one does.
func open(ctx context.Context, o *Options, from, to Shard, others []Node) (_ *session, err error) {
	s := &session{o: o, from: from, to: to, others: others, peers: map[string]*link{}, lanes: map[string][]*link{}, name: sessionName(o, from, to)}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.src, err = s.dial(ctx, from.Primary.Addr); err != nil {
		return nil, err
	}
	if s.tgt, err = s.dial(ctx, to.Primary.Addr); err != nil {
		return nil, err
	}
	for _, l := range []*link{s.src, s.tgt} {
		if err := s.alone(ctx, l); err != nil {
			return nil, err
		}
	}
	reps, err := s.info(ctx, s.src)
	if err != nil {
		return nil, err
	}
	s.fieldTTL = len(reps[1].items) > 0 && !reps[1].items[0].null
	s.told.source = valkey8(reps[0])
	if reps, err = s.info(ctx, s.tgt); err != nil {
		return nil, err
	}
	s.told.target = valkey8(reps[0])
	return s, nil
}

// valkey8 reports whether INFO is that of Valkey 8.0 or later.
func valkey8(info reply) bool {
	major, _, _ := strings.Cut(fields(info.body)["valkey_version"], ".")
	n, err := strconv.Atoi(major)
	return err == nil && n >= 8
}

// sessionName is the name of a session's connections.
func sessionName(o *Options, from, to Shard) string {
	return "redoubt-mover:" + o.Name + ":" + from.ID + ":" + to.ID
}

func (s *session) info(ctx context.Context, l *link) ([]reply, error) {
	l.add("INFO", "server")
	l.add("COMMAND", "INFO", "HPEXPIRETIME")
	reps, err := l.must(ctx)
	if err != nil {
		return nil, err
	}
	version := fields(reps[0].body)["redis_version"]
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		return nil, fmt.Errorf("%s is version %q: slots are moved between servers of Redis 7.0 or later, or Valkey", l.addr, version)
	}
	return reps, nil
}

func (s *session) dial(ctx context.Context, addr string) (*link, error) {
	nc, err := s.o.Dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	l := &link{nc: nc, r: bufio.NewReaderSize(nc, 64<<10), addr: addr}
	for _, cmd := range s.o.Login {
		l.add(cmd...)
	}
	l.add("CLIENT", "SETNAME", s.name)
	if _, err := l.must(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// alone ends every other connection of this name.
func (s *session) alone(ctx context.Context, l *link) error {
	l.add("CLIENT", "ID")
	l.add("CLIENT", "LIST")
	reps, err := l.must(ctx)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(reps[1].body)) {
		f := strings.Fields(line)
		if !slices.Contains(f, "name="+s.name) {
			continue
		}
		if id, ok := strings.CutPrefix(f[0], "id="); ok && id != strconv.FormatInt(reps[0].num, 10) {
			l.add("CLIENT", "KILL", "ID", id)
		}
	}
	_, err = l.round(ctx) // one that is gone already is an error to the server
	return err
}

// look gathers the facts of both sides.
func (s *session) look(ctx context.Context, mv reshard.Move, f *reshard.Facts) error {
	var err error
	if f.Source, err = s.side(ctx, s.src, s.from, mv, false); err != nil {
		return err
	}
	if f.Target, err = s.side(ctx, s.tgt, s.to, mv, true); err != nil {
		return err
	}
	f.Seen, f.Settled = true, s.settled()
	return nil
}

// settled says whether what the target takes now stays its own. Nodes believe whoever claims a slot with the higher epoch, and one that
// loses a slot deletes its keys. So the target must take an epoch above every one with which the source has claimed the slot: it
// takes one above all that it knows, unless it has the highest already. Hence it must know the source's, and not have the same.
func (s *session) settled() bool {
	return s.heard.me == s.to.Primary.ID && s.heard.epoch[s.from.Primary.ID] >= s.epoch && s.heard.epoch[s.heard.me] != s.epoch
}

func (s *session) side(ctx context.Context, l *link, sh Shard, mv reshard.Move, target bool) (reshard.Side, error) {
	l.add("CLUSTER", "NODES")
	s.addCounts(l, mv.Slots)
	reps, err := l.must(ctx)
	if err != nil {
		return reshard.Side{}, err
	}
	v, err := readView(string(reps[0].body), mv.Slots)
	if err != nil {
		return reshard.Side{}, fmt.Errorf("%s: %w", l.addr, err)
	}
	if v.me != sh.Primary.ID || !v.primary {
		return reshard.Side{}, fmt.Errorf("%s calls itself %s (a primary: %v), and not the primary %s of shard %s", l.addr, v.me, v.primary, sh.Primary.ID, sh.ID)
	}
	if target {
		s.heard = v
	} else {
		s.epoch = v.epoch[v.me]
	}
	side := reshard.Side{Owner: s.ownerOf(v, mv.Slots, target), Keys: sum(reps[1:])}
	side.Marked, side.AnyMark = s.marks(v, mv.Slots, target)
	side.Left, _, err = s.left(ctx, sh.Replicas, mv.Slots)
	return side, err
}

// ownerOf says who has the slots by a primary's word. Whom the target calls the owner counts for it only if it is the target itself.
func (s *session) ownerOf(v view, slots []int, target bool) reshard.Owner {
	has := func(sh Shard, id string) bool {
		is := func(n Node) bool { return n.ID == id }
		return is(sh.Primary) || slices.ContainsFunc(sh.Replicas, is) || slices.ContainsFunc(sh.Absent, is)
	}
	var owner reshard.Owner
	for _, slot := range slots {
		o := reshard.BySome
		switch id := v.owner[slot]; {
		case id == "":
			o = reshard.Nobody
		case target && id == v.me, !target && has(s.to, id):
			o = reshard.ByTarget
		case has(s.from, id):
			o = reshard.BySource
		}
		switch {
		case owner == "":
			owner = o
		case owner != o && (o == reshard.BySome || owner == reshard.BySome):
			return reshard.BySome
		case owner != o:
			owner = reshard.Mixed
		}
	}
	return owner
}

// giver is whom the mark at the source or the target names, under which it takes keys of slots that it does not own. Valkey from 8.0 on takes
// marked slots for its own as soon as the node that the mark names says that it does not have them, be it in a message of long ago, and then
// their owner deletes the keys. There the mark names the server itself, which tells itself nothing.
func (s *session) giver(target bool) string {
	if s.told.source && !target || target && !s.told.target {
		return s.from.Primary.ID
	}
	return s.to.Primary.ID
}

func (s *session) marks(v view, slots []int, target bool) (all, some bool) {
	giver := s.giver(true)
	all = true
	for _, slot := range slots {
		if target {
			by, is := v.importing[slot]
			some = some || is
			all = all && (is && (!s.told.target || by == giver) && v.owner[slot] == s.from.Primary.ID || v.owner[slot] == v.me)
			continue
		}
		is := v.migrating[slot] == s.to.Primary.ID
		some = some || is
		all = all && (is || v.owner[slot] != v.me)
	}
	return all, some
}

func (s *session) addCounts(l *link, slots []int) {
	for _, slot := range slots {
		l.add("CLUSTER", "COUNTKEYSINSLOT", strconv.Itoa(slot))
	}
}

func sum(reps []reply) (n int64) {
	for _, r := range reps {
		n += r.num
	}
	return n
}

// left is the largest number of keys of these slots that a replica has. One that does not answer does not count: what was deleted is in
// the stream that it gets when it is back.
func (s *session) left(ctx context.Context, replicas []Node, slots []int) (most int64, answered int, err error) {
	for _, n := range replicas {
		reps, err := s.ask(ctx, n, func(l *link) { s.addCounts(l, slots) })
		if ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		if err != nil {
			continue
		}
		answered++
		most = max(most, sum(reps))
	}
	return most, answered, nil
}

// view is what CLUSTER NODES of one server says about some slots.
type view struct {
	me        string
	primary   bool
	epoch     map[string]uint64 // of every node
	owner     map[int]string
	importing map[int]string // from whom
	migrating map[int]string // to whom
}

func readView(nodes string, slots []int) (view, error) {
	v := view{epoch: map[string]uint64{}, owner: map[int]string{}, importing: map[int]string{}, migrating: map[int]string{}}
	wanted := map[int]bool{}
	for _, s := range slots {
		wanted[s] = true
	}
	for line := range strings.Lines(nodes) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		epoch, err := strconv.ParseUint(f[6], 10, 64)
		if err != nil {
			return v, fmt.Errorf("read CLUSTER NODES: %.40q is not an epoch", f[6])
		}
		v.epoch[f[0]] = epoch
		me := slices.Contains(strings.Split(f[2], ","), "myself")
		if me {
			v.me, v.primary = f[0], strings.Contains(f[2], "master")
		}
		for _, word := range f[8:] {
			if mark, ok := strings.CutPrefix(word, "["); ok {
				v.mark(strings.TrimSuffix(mark, "]"), wanted)
				continue
			}
			a, z, isRange := strings.Cut(word, "-")
			if !isRange {
				z = a
			}
			from, err1 := strconv.Atoi(a)
			to, err2 := strconv.Atoi(z)
			if err1 != nil || err2 != nil {
				return v, fmt.Errorf("read CLUSTER NODES: %.40q is not a range of slots", word)
			}
			for _, s := range slots {
				if from <= s && s <= to {
					v.owner[s] = f[0]
				}
			}
		}
	}
	if v.me == "" {
		return v, fmt.Errorf("read CLUSTER NODES: the server does not name itself")
	}
	return v, nil
}

// mark reads "93-<-id" (importing) and "93->-id" (migrating).
func (v *view) mark(text string, wanted map[int]bool) {
	for arrow, into := range map[string]map[int]string{"-<-": v.importing, "->-": v.migrating} {
		if slot, id, ok := strings.Cut(text, arrow); ok {
			if s, err := strconv.Atoi(slot); err == nil && wanted[s] {
				into[s] = id
			}
		}
	}
}
