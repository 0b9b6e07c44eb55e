// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/reshard"
)

var (
	errDemoted = errors.New("it is no primary any more")
	errTurned  = errors.New("the target has another primary: what it was given last is copied again")
	errMoved   = errors.New("slots have moved between the source's nodes: everything is copied again")
)

// copyAll is the first copy: every key, and between its parts what was written meanwhile. It can be stopped, and gone on with by another
// process, behind each part. It may have to begin anew while it goes on.
func (g *leg) copyAll(ctx context.Context) error {
	for !g.point.Copied || g.point.Mirror {
		do := g.part
		if g.point.Copied {
			g.point.Mirror, do = false, g.mirror // what is stored says so behind it
		}
		if err := do(ctx); err != nil {
			return err
		}
		if err := g.store(ctx); err != nil {
			return err
		}
	}
	return nil
}

// store notes how far this leg is, once a replica of the target has it, too, and if the target's primaries are those that were given it: an
// asynchronous failover may have lost the last of it, and then the copy goes on where it was stored before.
func (g *leg) store(ctx context.Context) error {
	if g.replicas > 0 {
		rep, err := g.to.ask(ctx, "WAIT", "1", strconv.FormatInt(ackTime.Milliseconds(), 10))
		if err != nil || rep.num == 0 {
			return err // next time
		}
	}
	if err := g.unturned(ctx, g.look); err != nil {
		return err
	}
	return g.save(ctx, func(s *state) { s.set(g.point) })
}

// unturned says whether the target's primaries are still those of the beginning.
func (w *Whole) unturned(ctx context.Context, l *link) error {
	now, err := home(ctx, l)
	if err == nil && now != w.home {
		err = errTurned
	}
	return err
}

// home names the server processes that are the target's primaries: a front tells each shard's.
func home(ctx context.Context, l *link) (string, error) {
	rep, err := l.ask(ctx, "INFO")
	if err != nil {
		return "", err
	}
	info := fields(rep.body)
	ids := []string{info["run_id"]}
	for k, v := range info {
		if _, isShard := strings.CutPrefix(k, "shard_"); !isShard {
			continue
		}
		for f := range strings.SplitSeq(v, ",") {
			if id, ok := strings.CutPrefix(f, "run_id="); ok {
				ids = append(ids, k+"="+id)
			}
		}
	}
	slices.Sort(ids)
	return strings.Join(ids, " "), nil
}

// part copies what was written, and then keys for some seconds. What is written meanwhile is noted for the next part.
func (g *leg) part(ctx context.Context) error {
	if err := g.take(ctx); err != nil {
		return err
	}
	until := time.Now().Add(chunkTime)
	return g.c.copyKeys(ctx, func(ctx context.Context) (page, error) {
		if p, ok, err := g.between(ctx); ok || err != nil {
			return p, err
		}
		if time.Now().After(until) || g.point.Copied {
			return page{end: true}, nil
		}
		return g.scan(ctx)
	}, g.o.Rate)
}

// between keeps the list of what was written short while something long is copied.
func (g *leg) between(ctx context.Context) (page, bool, error) {
	if g.stream != nil && g.stream.noted() > dirtyAhead && len(g.queue) == 0 {
		if _, err := g.queueDirty(ctx); err != nil {
			return page{}, false, err
		}
	}
	p, ok := g.queued()
	return p, ok, nil
}

func (g *leg) queued() (page, bool) {
	if len(g.queue) == 0 {
		return page{}, false
	}
	p := g.queue[0]
	g.queue = g.queue[1:]
	return p, true
}

// scan takes the next keys of the first copy.
func (g *leg) scan(ctx context.Context) (page, error) {
	if len(g.scans) == 0 {
		g.point.Copied = true
		return page{end: true}, nil
	}
	g.point.DB = g.scans[0]
	keys, cursor, err := scanPage(ctx, g.src, g.point.DB, g.point.Cursor)
	if err != nil {
		return page{}, err
	}
	p := page{db: g.point.DB, keys: slices.DeleteFunc(keys, func(k string) bool { return !g.mine(k) })}
	if g.point.Cursor = cursor; cursor == "0" {
		if g.scans = g.scans[1:]; len(g.scans) == 0 {
			g.point.Copied = true
		}
	}
	return p, nil
}

func scanPage(ctx context.Context, l *link, db int, cursor string, more ...string) (keys []string, next string, err error) {
	if err := l.use(ctx, db); err != nil {
		return nil, "", err
	}
	rep, err := l.ask(ctx, append([]string{"SCAN", cursor, "COUNT", strconv.Itoa(scanCount)}, more...)...)
	if err != nil {
		return nil, "", err
	}
	if len(rep.items) != 2 {
		return nil, "", fmt.Errorf("%s answered SCAN with %d parts", l.addr, len(rep.items))
	}
	return keysIn(rep.items[1:]), string(rep.items[0].body), nil
}

// take queues what was written since the last time, and moves the point there: it holds when the queue and everything large was copied.
func (g *leg) take(ctx context.Context) error {
	if g.stream == nil {
		return nil
	}
	at, err := g.queueDirty(ctx)
	if err == nil {
		g.point.Offset = at
	}
	return err
}

// queueDirty makes pages of the keys that were written. When that may be all of them, everything is copied anew.
func (g *leg) queueDirty(ctx context.Context) (at int64, err error) {
	names, all, libs, at, err := g.stream.takeTo()
	if err != nil {
		return at, err
	}
	if libs {
		g.libs.Store(true)
	}
	if all {
		g.point.Copied, g.point.Mirror, g.point.Cursor = false, true, "0"
		if g.scans, err = g.databases(ctx); err != nil {
			return at, err
		}
		g.again.Add(1)
	}
	if len(names) == 0 {
		return at, nil
	}
	var dbs []int
	byDB := map[int][]string{}
	for _, n := range names {
		if !g.mine(n.key) {
			continue
		}
		if n.db >= 0 {
			byDB[n.db] = append(byDB[n.db], n.key)
			continue
		}
		if dbs == nil {
			if dbs, err = g.databases(ctx); err != nil {
				return at, err
			}
		}
		for _, db := range dbs {
			byDB[db] = append(byDB[db], n.key)
		}
	}
	for db, keys := range byDB {
		if only := g.o.Source.DB; only < 0 || only == db {
			g.queue = append(g.queue, page{db: db, keys: keys})
		}
	}
	return at, nil
}

// catchUp copies what was written since the last time.
func (g *leg) catchUp(ctx context.Context, rate reshard.Rate) error {
	if g.stream == nil {
		return nil
	}
	if err := g.take(ctx); err != nil {
		return err
	}
	if !g.point.Copied {
		return g.copyAll(ctx)
	}
	if len(g.queue) == 0 {
		return nil
	}
	return g.c.copyKeys(ctx, func(context.Context) (page, error) {
		if p, ok := g.queued(); ok {
			return p, nil
		}
		return page{end: true}, nil
	}, rate)
}

// behind is how much of the stream was not read yet, in bytes, and how many keys are to be copied again.
func (g *leg) behind(ctx context.Context) (bytes, keys int64, err error) {
	if g.stream == nil {
		return 0, 0, nil
	}
	end, err := offsetOf(ctx, g.src)
	return max(0, end-g.stream.offset()), int64(g.stream.noted()), err
}

func offsetOf(ctx context.Context, l *link) (int64, error) {
	rep, err := l.ask(ctx, "INFO", "replication")
	if err != nil {
		return 0, err
	}
	info := fields(rep.body)
	if info["role"] != "master" {
		return 0, fmt.Errorf("%s: %w", l.addr, errDemoted)
	}
	at, err := strconv.ParseInt(info["master_repl_offset"], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the offset of %s: %w", l.addr, err)
	}
	return at, nil
}

// steady says whether the source's slots are where they were when this began: a key of a slot that moves is deleted at one of its nodes, and nobody
// would carry it from the other.
func (g *leg) steady(ctx context.Context) error {
	if g.from.layout == "" {
		return nil
	}
	rep, err := g.src.ask(ctx, "CLUSTER", "NODES")
	if err != nil {
		return err
	}
	if now, err := layoutOf(string(rep.body)); err != nil || now != g.from.layout {
		return errors.Join(errMoved, err)
	}
	return nil
}

// mirror takes from the target what the source has no more, or never had.
func (g *leg) mirror(ctx context.Context) error {
	dbs, err := g.databases(ctx)
	if err != nil {
		return err
	}
	cursor := "0"
	return g.c.copyKeys(ctx, func(ctx context.Context) (page, error) {
		if p, ok, err := g.between(ctx); ok || err != nil {
			return p, err
		}
		if len(dbs) == 0 {
			return page{end: true}, nil
		}
		db := dbs[0]
		keys, next, err := scanPage(ctx, g.look, g.c.place(db), cursor)
		if err != nil {
			return page{}, err
		}
		if cursor = next; next == "0" {
			dbs = dbs[1:]
		}
		keys = slices.DeleteFunc(keys, func(k string) bool { return !g.mine(k) })
		missing, err := g.missing(ctx, db, keys)
		return page{db: db, keys: missing}, err
	}, g.o.Rate)
}

// missing are those of the keys that the source has not.
func (g *leg) missing(ctx context.Context, db int, keys []string) (out []string, err error) {
	if len(keys) == 0 {
		return nil, nil
	}
	if err := g.src.use(ctx, db); err != nil {
		return nil, err
	}
	for _, k := range keys {
		g.src.add("EXISTS", k)
	}
	reps, err := g.src.must(ctx)
	if err != nil {
		return nil, err
	}
	for i, k := range keys {
		if reps[i].num == 0 {
			out = append(out, k)
		}
	}
	return out, nil
}

// sweep removes what was being put together when an earlier process ended.
func (g *leg) sweep(ctx context.Context) error {
	dbs, err := g.databases(ctx)
	if err != nil {
		return err
	}
	for _, db := range dbs {
		for cursor := "0"; ; {
			keys, next, err := scanPage(ctx, g.look, g.c.place(db), cursor, "MATCH", movingPrefix+"*")
			if err != nil {
				return err
			}
			for _, k := range keys {
				if _, err := g.look.ask(ctx, "UNLINK", k); err != nil {
					return err
				}
			}
			if cursor = next; cursor == "0" {
				break
			}
		}
	}
	return nil
}
