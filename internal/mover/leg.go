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
)

const (
	scanCount   = 1000            // keys of one SCAN
	dirtyAhead  = 20_000          // keys that wait to be copied again while the first copy goes on
	chunkTime   = 5 * time.Second // of the first copy between two stored points
	backlogWait = 5 * time.Second
)

// errBlind: the writes of a source cannot be followed.
var errBlind = errors.New("its writes cannot be followed")

// leg carries the keys of one origin. One goroutine at a time uses it.
type leg struct {
	*Whole
	from   origin
	src    *link
	to     *link // of the copier
	look   *link // to the target, for what is asked beside copying
	stream *listener
	c      *copier
	point  point
	info   map[string]string
	scans  []int // databases that the first copy still has to go through; the first is point.DB
	queue  []page
	doors  []*door
	busy   []name // compared, and written too often for that
	name   string
	// drained: a source that cannot be followed was copied again while writers waited
	drained bool
}

// open connects one origin with the target, and begins to note what is written there.
func (w *Whole) open(ctx context.Context, o origin) (_ *leg, err error) {
	g := &leg{Whole: w, from: o, name: "redoubt-migrate:" + o.addr}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.src, err = w.o.Source.At.dial(ctx, o.addr, g.name); err != nil {
		return nil, err
	}
	for _, l := range []**link{&g.to, &g.look} {
		if *l, err = w.o.Target.any(ctx, "redoubt-migrate"); err != nil {
			return nil, err
		}
	}
	g.c = &copier{
		src: g.src, tgt: g.to, limit: bigBytes, dbOf: w.dbOf, big: map[name]int64{}, temp: g.temporary,
		count: func(keys, bytes, _ int64) { w.keys.Add(keys); w.bytes.Add(bytes) },
	}
	if err := g.learn(ctx); err != nil {
		return nil, err
	}
	return g, nil
}

// learn asks the source what it is and can.
func (g *leg) learn(ctx context.Context) error {
	g.src.add("INFO")
	g.src.add("COMMAND", "INFO", "PEXPIRETIME", "HPEXPIRETIME")
	reps, err := g.src.must(ctx)
	if err != nil {
		return err
	}
	known := func(i int) bool { return len(reps[1].items) > i && len(reps[1].items[i].items) > 0 }
	g.c.relative, g.c.fieldTTL = !known(0), known(1)
	g.info = fields(reps[0].body)
	if g.info["loading"] == "1" {
		return fmt.Errorf("%s is loading its data: migrate when it is there", g.src.addr)
	}
	return nil
}

func (g *leg) close() {
	g.stream.close()
	g.src.close()
	g.to.close()
	g.look.close()
}

// start begins to follow the source, where the stored point is if the source still has that, else from now on.
func (g *leg) start(ctx context.Context) error {
	ours := session{name: g.name}
	if err := ours.alone(ctx, g.src); err != nil {
		var refused serverError
		if !errors.As(err, &refused) {
			return err
		}
	}
	stored, found := g.state.find(g.from.addr, g.info["master_replid"], g.info["master_replid2"])
	dbs, err := g.databases(ctx)
	if err != nil {
		return err
	}
	l, err := g.listener(ctx)
	if err != nil {
		return err
	}
	goesOn := found && !g.blind && g.reaches(stored)
	if goesOn {
		l.replid, l.at = stored.ReplID, stored.Offset
	}
	if !g.blind {
		if err := g.listen(ctx, l); err != nil {
			return err
		}
	}
	g.point = point{Cursor: "0", Mirror: g.known || g.o.Overwrite}
	switch {
	case goesOn && stored.Copied:
		g.point = stored
	case goesOn && stored.RunID == g.info["run_id"]:
		dbs = slices.DeleteFunc(dbs, func(db int) bool { return db < stored.DB })
		if len(dbs) > 0 && dbs[0] == stored.DB {
			g.point.Cursor = stored.Cursor
		}
		g.point.Mirror = stored.Mirror
	}
	g.point.Addr, g.point.RunID, g.point.ReplID, g.point.Offset = g.from.addr, g.info["run_id"], l.replid, l.offset()
	g.scans = dbs
	if goesOn {
		g.o.Note(fmt.Sprintf("%s: going on at offset %d", g.from.addr, stored.Offset))
	}
	return g.store(ctx)
}

// listener is one that is not connected yet.
func (g *leg) listener(ctx context.Context) (*listener, error) {
	table, err := g.src.ask(ctx, "COMMAND")
	if err != nil {
		return nil, err
	}
	return &listener{
		keys: g.o.Keys(appendReply(nil, table)), whole: true, db: -1,
		dial: func(ctx context.Context) (*link, error) { return g.o.Source.At.dial(ctx, g.from.addr, g.name) },
	}, nil
}

// reaches says whether the source can go on with its stream at a stored point.
func (g *leg) reaches(p point) bool {
	n := func(name string) int64 { v, _ := strconv.ParseInt(g.info[name], 10, 64); return v }
	switch {
	case g.info["repl_backlog_active"] != "1" || p.ReplID == "":
		return false
	case p.ReplID == g.info["master_replid"]:
	case p.ReplID == g.info["master_replid2"] && p.Offset < n("second_repl_offset"):
	default:
		return false
	}
	first := n("repl_backlog_first_byte_offset")
	return first > 0 && first <= p.Offset+1 && p.Offset <= n("master_repl_offset")
}

// listen begins to follow. A server that never had a replica keeps no backlog yet: it begins to when one asks for a copy of everything.
func (g *leg) listen(ctx context.Context, l *listener) error {
	if g.info["repl_backlog_active"] != "1" {
		if err := g.wakeBacklog(ctx); err != nil {
			return err
		}
	}
	if err := listen(ctx, g.src, l); err != nil {
		var refused serverError
		if errors.As(err, &refused) {
			return fmt.Errorf("%s: %w: %w", g.from.addr, errBlind, err)
		}
		return err
	}
	g.stream, g.c.stream = l, l
	return nil
}

// wakeBacklog asks for a copy, and is gone before it is made: servers that send it without a file wait some seconds for further replicas,
// others give up the child that writes it.
func (g *leg) wakeBacklog(ctx context.Context) error {
	l, err := g.o.Source.At.dial(ctx, g.from.addr, g.name)
	if err != nil {
		return err
	}
	defer l.close()
	if _, err := l.ask(ctx, "REPLCONF", "capa", "eof", "capa", "psync2"); err != nil {
		return fmt.Errorf("%s: %w: %w", g.from.addr, errBlind, err)
	}
	l.add("PSYNC", "?", "-1")
	if err := l.send(ctx); err != nil {
		return err
	}
	for end := time.Now().Add(backlogWait); time.Now().Before(end); {
		_ = l.nc.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if rep, err := readReply(l.r, 0); err == nil && rep.err() != nil {
			return fmt.Errorf("%s: %w: %w", g.from.addr, errBlind, rep.err())
		}
		rep, err := g.src.ask(ctx, "INFO", "replication")
		if err != nil {
			return err
		}
		if fields(rep.body)["repl_backlog_active"] == "1" {
			return nil
		}
		if err := rest(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %w: it keeps no replication backlog", g.from.addr, errBlind)
}

// databases are those of the source that are carried and have keys, and those of the target that may have some of them.
func (g *leg) databases(ctx context.Context) ([]int, error) {
	if g.o.Source.DB >= 0 {
		return []int{g.o.Source.DB}, nil
	}
	if g.dbOf != nil {
		return []int{0}, nil
	}
	seen := map[int]bool{}
	for _, l := range []*link{g.src, g.look} {
		rep, err := l.ask(ctx, "INFO", "keyspace")
		if err != nil {
			return nil, err
		}
		for db := range keyspace(rep.body) {
			seen[db] = true
		}
	}
	var dbs []int
	for db := range seen {
		dbs = append(dbs, db)
	}
	slices.Sort(dbs)
	return dbs, nil
}

// keyspace reads the lines db0:keys=5,expires=0 of INFO.
func keyspace(text []byte) map[int]int64 {
	m := map[int]int64{}
	for k, v := range fields(text) {
		n, isDB := strings.CutPrefix(k, "db")
		db, err := strconv.Atoi(n)
		if !isDB || err != nil {
			continue
		}
		count, _, _ := strings.Cut(strings.TrimPrefix(v, "keys="), ",")
		if keys, err := strconv.ParseInt(count, 10, 64); err == nil {
			m[db] = keys
		}
	}
	return m
}

// mine says whether a key is carried by this leg.
func (g *leg) mine(key string) bool {
	return !strings.HasPrefix(key, ownPrefix) && (g.from.owns == nil || g.from.owns([]byte(key)))
}

// temporary is a key of the target that is at the same place as another one.
func (g *leg) temporary(n name) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	near := temporary(slotOfKey, slotOfKey([]byte(n.key)))
	if !g.front {
		return near, nil
	}
	want, err := g.look.ask(ctx, "PROXY", "SHARDOF", n.key)
	if err != nil {
		return "", err
	}
	for i := range 4096 {
		rep, err := g.look.ask(ctx, "PROXY", "SHARDOF", near)
		if err != nil {
			return "", err
		}
		if string(rep.body) == string(want.body) {
			return near, nil
		}
		near = movingPrefix + strconv.Itoa(i) + "}"
	}
	return "", fmt.Errorf("no name was found that is on the shard of %.60q", n.key)
}
