// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"redoubt/internal/reshard"
)

// name is one key. Only a whole server has other databases than 0.
type name struct {
	db  int
	key string
}

// weighed is one key on its way: how large it is said to be, then what it is.
type weighed struct {
	name
	bytes int64
	ttl   int64  // when it ends, in Unix milliseconds, or in how many (copier.relative); 0: never
	value []byte // as DUMP gives it; nil: there is no such key any more
}

// page is some keys of one database, on their way to be copied.
type page struct {
	db   int
	keys []string
	end  bool // there are no further pages
}

// pages gives page after page; one may be empty.
type pages func(ctx context.Context) (page, error)

// pageOf gives the keys of database 0 that are known already.
func pageOf(keys []string) pages {
	return func(context.Context) (page, error) { return page{keys: keys, end: true}, nil }
}

// copier makes a target have what a source has of some keys. It belongs to one goroutine; while it copies, another one reads ahead.
type copier struct {
	src, tgt *link
	stream   *listener                  // what was written; nil: nobody knows
	limit    int64                      // of what is dumped; a larger value is copied in pieces
	asking   bool                       // the target is not the owner of the keys' slots
	fieldTTL bool                       // the source knows times to live of a hash's fields
	relative bool                       // the source tells ends of life only by how far away they are
	still    bool                       // nobody writes at the source
	dbOf     func(db int) int           // the target's database; nil: the same
	temp     func(name) (string, error) // a key at the place of another one, for a value that is being put together
	big      map[name]int64             // keys that were large, and how large
	count    func(keys, bytes, pieces int64)
	rested   time.Time // until then the servers were left alone last
}

// copier is the one of the batch's session, for as long as that lasts.
func (b *batch) copier() *copier {
	return &copier{
		src: b.s.src, tgt: b.s.tgt, stream: b.s.stream, limit: b.o.BigBytes, asking: true, fieldTTL: b.s.fieldTTL, still: b.f.Parked, big: b.big,
		temp: func(n name) (string, error) { return temporary(b.o.Slot, b.o.Slot([]byte(n.key))), nil },
		count: func(keys, bytes, pieces int64) {
			b.report.Keys += keys
			b.report.Bytes += bytes
			b.report.Pieces += pieces
		},
	}
}

// keysOf lists the keys of slots at one server.
func keysOf(ctx context.Context, l *link, slots []int) ([]string, error) {
	addKeys(l, slots)
	reps, err := l.must(ctx)
	return keysIn(reps), err
}

func addKeys(l *link, slots []int) {
	for _, slot := range slots {
		l.add("CLUSTER", "GETKEYSINSLOT", strconv.Itoa(slot), strconv.Itoa(1<<31-1))
	}
}

func keysIn(reps []reply) (keys []string) {
	for _, r := range reps {
		for _, it := range r.items {
			keys = append(keys, string(it.body))
		}
	}
	return keys
}

// copyAll copies everything that the source has in the slots.
func (b *batch) copyAll(ctx context.Context) error {
	keys, err := keysOf(ctx, b.s.src, b.mv.Slots)
	if err != nil {
		return err
	}
	return b.copier().copyKeys(ctx, pageOf(keys), b.o.Rate)
}

// copyDirty copies what was written since the last time.
func (b *batch) copyDirty(ctx context.Context, rate reshard.Rate) error {
	names, all, err := b.s.stream.take()
	if err != nil {
		return err
	}
	var keys []string
	for _, n := range names {
		keys = append(keys, n.key)
	}
	if all { // also what the target has and the source has not
		set := map[string]struct{}{}
		for _, l := range []*link{b.s.src, b.s.tgt} {
			more, err := keysOf(ctx, l, b.mv.Slots)
			if err != nil {
				return err
			}
			for _, k := range more {
				set[k] = struct{}{}
			}
		}
		keys = slices.Collect(maps.Keys(set))
	}
	return b.copier().copyKeys(ctx, pageOf(keys), rate)
}

// copyKeys makes the target have what the source has of these keys: first those of ordinary size, read ahead by a goroutine, then the large ones.
func (c *copier) copyKeys(ctx context.Context, more pages, rate reshard.Rate) error {
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	read := &reader{copier: c, more: more, groups: make(chan []weighed, 2), ended: make(chan struct{})}
	go read.run(both)
	err := c.restoreAll(both, read.groups, rate)
	cancel()
	<-read.ended
	if err == nil { // else reading was only told to end
		err = read.err
	}
	if err != nil {
		return err
	}
	for _, w := range read.big {
		c.big[w.name] = w.bytes
		if err := c.copyBig(ctx, w, rate); err != nil {
			return fmt.Errorf("copy the value of %.60q: %w", w.key, err)
		}
	}
	return nil
}

// onWay is a group that the target was given and has not answered yet.
type onWay struct {
	replies     int
	keys, bytes int64
	began       time.Time
}

// restoreAll gives the target group after group: the next one while it works on the one before.
func (c *copier) restoreAll(ctx context.Context, groups <-chan []weighed, rate reshard.Rate) error {
	var open onWay
	for {
		var group []weighed
		var more bool
		select {
		case group, more = <-groups:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !more {
			return c.answered(ctx, open, rate)
		}
		if c.tgt.db != c.place(group[0].db) {
			if err := c.answered(ctx, open, rate); err != nil {
				return err
			}
			open = onWay{}
		}
		next, err := c.give(ctx, group)
		if err != nil {
			return err
		}
		if err := c.answered(ctx, open, rate); err != nil {
			return err
		}
		open = next
	}
}

// answered takes the target's replies to a group.
func (c *copier) answered(ctx context.Context, g onWay, rate reshard.Rate) error {
	if g.replies == 0 {
		return nil
	}
	reps, err := c.tgt.receiveSome(ctx, g.replies)
	if err == nil {
		err = c.tgt.firstError(reps)
	}
	if err != nil {
		return err
	}
	c.count(g.keys, g.bytes, 0)
	if g.began.Before(c.rested) { // it was on its way while the servers were left alone: that is not its time
		g.began = c.rested
	}
	err = rest(ctx, rate.Rest(g.keys, g.bytes, time.Since(g.began)))
	c.rested = time.Now()
	return err
}

// rest leaves the servers alone for a while.
func rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// give sends the target one group of keys, and has it forget those that are no more.
func (c *copier) give(ctx context.Context, group []weighed) (g onWay, err error) {
	if err := c.tgt.use(ctx, c.place(group[0].db)); err != nil {
		return g, err
	}
	g.began, g.keys = time.Now(), int64(len(group))
	for _, w := range group {
		c.ask()
		if w.value == nil {
			c.tgt.add("UNLINK", w.key)
			continue
		}
		g.bytes += int64(len(w.value))
		c.addRestore(w)
	}
	g.replies = c.tgt.adds
	return g, c.tgt.send(ctx)
}

// ask says in front of a command that the target is to take it though it does not own the slot.
func (c *copier) ask() {
	if c.asking {
		c.tgt.add("ASKING")
	}
}

// place is the target's database for one of the source's.
func (c *copier) place(db int) int {
	if c.dbOf == nil {
		return db
	}
	return c.dbOf(db)
}

func (c *copier) addRestore(w weighed) {
	more := [][]byte{w.value, []byte("REPLACE"), []byte("ABSTTL")}
	if c.relative {
		more = more[:2]
	}
	c.tgt.addValues([]string{"RESTORE", w.key, strconv.FormatInt(w.ttl, 10)}, more...)
}

// addEnd asks the source for the end of a key's life.
func (c *copier) addEnd(key string) {
	if c.relative {
		c.src.add("PTTL", key)
		return
	}
	c.src.add("PEXPIRETIME", key)
}

// reader reads values at the source, ahead of who restores them.
type reader struct {
	*copier
	more   pages
	groups chan []weighed
	ended  chan struct{}
	big    []weighed // after ended
	err    error
}

// window is how many keys are weighed at once.
const window = 4 * batchKeys

// run reads until there are no more pages. Whoever restores is told by the end of the channel, and finds err behind ended.
func (r *reader) run(ctx context.Context) {
	defer close(r.ended)
	r.err = r.read(ctx)
	close(r.groups)
}

func (r *reader) read(ctx context.Context) (err error) {
	var p page
	var next []weighed // weighed and of ordinary size, all of one database
	for {
		for len(p.keys) == 0 && !p.end {
			if p, err = r.more(ctx); err != nil {
				return err
			}
		}
		if len(p.keys) == 0 && len(next) == 0 {
			return nil
		}
		var group []weighed
		group, next = cut(next)
		weigh := 0
		if len(next) < batchKeys && (len(group) == 0 || group[0].db == p.db) {
			weigh = min(window, len(p.keys))
		}
		ahead, err := r.round(ctx, group, page{db: p.db, keys: p.keys[:weigh]})
		if err != nil {
			return err
		}
		p.keys = p.keys[weigh:]
		next = append(next, ahead...)
		if len(group) == 0 {
			continue
		}
		select {
		case r.groups <- group:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// cut takes the next group: not too many keys, not too many bytes.
func cut(keys []weighed) (group, rest []weighed) {
	n, bytes := 0, int64(0)
	for n < len(keys) && n < batchKeys && (n == 0 || bytes+keys[n].bytes <= batchBytes) {
		bytes += keys[n].bytes
		n++
	}
	return keys[:n:n], keys[n:]
}

// round dumps one group, and weighs further keys of the same database, in one go. What is large goes to r.big.
func (r *reader) round(ctx context.Context, group []weighed, weigh page) ([]weighed, error) {
	if len(group) > 0 {
		weigh.db = group[0].db
	}
	if err := r.src.use(ctx, weigh.db); err != nil {
		return nil, err
	}
	for _, w := range group {
		r.src.add("DUMP", w.key)
		r.addEnd(w.key)
	}
	for _, k := range weigh.keys {
		r.src.add("MEMORY", "USAGE", k, "SAMPLES", "5")
	}
	reps, err := r.src.must(ctx)
	if err != nil {
		return nil, err
	}
	for i := range group {
		d, t := reps[2*i], reps[2*i+1]
		if d.null || t.num == -2 {
			continue // it is no more
		}
		group[i].value, group[i].ttl = d.body, max(0, t.num)
	}
	out := make([]weighed, 0, len(weigh.keys))
	for i, k := range weigh.keys {
		w := weighed{name: name{weigh.db, k}, bytes: reps[2*len(group)+i].num}
		if w.bytes > r.limit {
			r.big = append(r.big, w)
			continue
		}
		out = append(out, w)
	}
	return out, nil
}
