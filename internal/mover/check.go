// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Plan is what a migration would do, and what stands in its way.
type Plan struct {
	Servers []PlanServer
	Target  string // its address
	Shards  bool   // it has several
	Version string // of the target
	Has     int64  // keys that it has
	Goes    bool   // an earlier process has begun: this one goes on
	Notes   []string
}

// PlanServer is one server whose keys are carried.
type PlanServer struct {
	Addr     string
	Version  string
	Keys     map[int]int64 // by database
	Bytes    int64         // that it uses
	Replicas int
}

// ErrRefused is why nothing was begun.
var ErrRefused = errors.New("refused")

// Check looks at both sides. It changes nothing but one key of the target, for a moment, to see that it takes what the source writes.
func (w *Whole) Check(ctx context.Context) (p Plan, err error) {
	if err := w.connect(ctx); err != nil {
		return p, err
	}
	defer w.disconnect()
	if err := w.load(ctx); err != nil {
		return p, err
	}
	rep, err := w.tgt.ask(ctx, "INFO")
	if err != nil {
		return p, err
	}
	info := fields(rep.body)
	p.Target, p.Shards, p.Version, p.Goes = w.tgt.addr, w.front, version(info), w.known
	var bytes int64
	for _, g := range w.legs {
		s, err := g.plan(ctx)
		if err != nil {
			return p, err
		}
		p.Servers = append(p.Servers, s)
		bytes += s.Bytes
	}
	if p.Has, err = w.tgtKeys(ctx); err != nil {
		return p, err
	}
	if !w.known && !w.o.Overwrite {
		if err := w.vacant(ctx); err != nil {
			return p, err
		}
	}
	room, _ := strconv.ParseInt(info["maxmemory"], 10, 64)
	used, _ := strconv.ParseInt(info["used_memory"], 10, 64)
	if room > 0 && used+bytes > room && !w.known {
		p.Notes = append(p.Notes, fmt.Sprintf("the source uses %d bytes, and the target has room for %d", bytes, max(0, room-used)))
	}
	if policy := info["maxmemory_policy"]; room > 0 && policy != "" && policy != "noeviction" {
		p.Notes = append(p.Notes, "the target evicts keys when it is full ("+policy+")")
	}
	return p, nil
}

func version(info map[string]string) string {
	if v := info["valkey_version"]; v != "" {
		return "Valkey " + v
	}
	return "Redis " + info["redis_version"]
}

// plan looks at one origin: what it has, and whether the target takes it.
func (g *leg) plan(ctx context.Context) (PlanServer, error) {
	s := PlanServer{Addr: g.from.addr, Version: version(g.info), Keys: map[int]int64{}, Replicas: len(g.from.replicas)}
	s.Bytes, _ = strconv.ParseInt(g.info["used_memory"], 10, 64)
	for k, v := range g.keyspace() {
		s.Keys[k] = v
	}
	if g.dbOf != nil && g.o.Source.DB < 0 {
		for db := range s.Keys {
			if db != 0 {
				return s, fmt.Errorf("%w: %s has keys in database %d, and the target has one database: name the one to carry, redis://host:port/%d", ErrRefused, g.from.addr, db, db)
			}
		}
	}
	if g.o.After == ReadOnly {
		if err := g.findDoors(ctx); err != nil {
			return s, fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	if err := g.mayFollow(ctx); err != nil && !(g.o.Blind && errors.Is(err, errBlind)) {
		return s, g.sighted(err)
	}
	return s, g.sample(ctx, s)
}

// mayFollow asks whether the source lets us speak as its replicas do.
func (g *leg) mayFollow(ctx context.Context) error {
	l, err := g.o.Source.At.dial(ctx, g.from.addr, g.name)
	if err != nil {
		return err
	}
	defer l.close()
	var refused serverError
	if _, err = l.ask(ctx, "REPLCONF", "capa", "psync2"); errors.As(err, &refused) {
		return fmt.Errorf("%s: %w: %w", g.from.addr, errBlind, err)
	}
	return err
}

// keyspace are the databases that are carried, with their keys.
func (g *leg) keyspace() map[int]int64 {
	var text strings.Builder
	for k, v := range g.info {
		text.WriteString(k + ":" + v + "\n")
	}
	all := keyspace([]byte(text.String()))
	if only := g.o.Source.DB; only >= 0 {
		return map[int]int64{only: all[only]}
	}
	return all
}

// sample restores one key of the source at the target, under another name, and removes it: then the format is right, and so are the permissions.
func (g *leg) sample(ctx context.Context, s PlanServer) error {
	for db, keys := range s.Keys {
		if keys == 0 {
			continue
		}
		if err := g.src.use(ctx, db); err != nil {
			return err
		}
		key, err := g.src.ask(ctx, "RANDOMKEY")
		if err != nil || key.null {
			return err
		}
		g.src.add("DUMP", string(key.body))
		g.src.add("MEMORY", "USAGE", string(key.body))
		reps, err := g.src.must(ctx)
		if err != nil || reps[0].null {
			return err
		}
		if err := g.look.use(ctx, g.c.place(db)); err != nil {
			return err
		}
		name := movingPrefix + "sample}"
		g.look.addValues([]string{"RESTORE", name, "0"}, reps[0].body, []byte("REPLACE"))
		g.look.add("UNLINK", name)
		if _, err := g.look.must(ctx); err != nil {
			return fmt.Errorf("%w: the target does not take a value of %s (%s): %w", ErrRefused, g.from.addr, s.Version, err)
		}
		return nil
	}
	return nil
}

// targetDatabases are those of the target into which something is carried, and which have keys.
func (w *Whole) targetDatabases(ctx context.Context) ([]int, error) {
	if w.dbOf != nil {
		return []int{0}, nil
	}
	if w.o.Source.DB >= 0 {
		return []int{w.o.Source.DB}, nil
	}
	rep, err := w.tgt.ask(ctx, "INFO", "keyspace")
	if err != nil {
		return nil, err
	}
	dbs := []int{}
	for db := range keyspace(rep.body) {
		dbs = append(dbs, db)
	}
	slices.Sort(dbs)
	return dbs, nil
}

func (w *Whole) tgtKeys(ctx context.Context) (n int64, err error) {
	dbs, err := w.targetDatabases(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, w.tgt.use(ctx, 0)) }()
	for _, db := range dbs {
		if err := w.tgt.use(ctx, db); err != nil {
			return 0, err
		}
		rep, err := w.tgt.ask(ctx, "DBSIZE")
		if err != nil {
			return 0, err
		}
		n += rep.num
	}
	return n, nil
}

// vacant refuses a target that has keys of its own.
func (w *Whole) vacant(ctx context.Context) (err error) {
	dbs, err := w.targetDatabases(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.tgt.use(ctx, 0)) }()
	for _, db := range dbs {
		for cursor := "0"; ; {
			keys, next, err := scanPage(ctx, w.tgt, db, cursor)
			if err != nil {
				return err
			}
			for _, k := range keys {
				if !strings.HasPrefix(k, ownPrefix) {
					return fmt.Errorf("%w: the target has keys in database %d, for example %.60q: empty it, or have it overwritten (--overwrite: what the source has not is removed)", ErrRefused, db, k)
				}
			}
			if cursor = next; next == "0" {
				break
			}
		}
	}
	return nil
}
