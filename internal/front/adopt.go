// SPDX-License-Identifier: Apache-2.0

package front

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// Taking over clients that the front of another process has given away.

// Running is closed once clients are served.
func (f *Front) Running() <-chan struct{} { return f.running }

// LastID returns the highest id that a client has had.
func (f *Front) LastID() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lastID
}

// Adopt goes on with a client that another front has given away. It owns the descriptors from now on, also when it fails. It waits until Run has begun.
func (f *Front) Adopt(g Given) error {
	select {
	case <-f.running:
	case <-time.After(f.o.Limits.Dial):
		g.close()
		return errors.New("the front does not run")
	}
	return f.adopt(g, false)
}

func (f *Front) adopt(g Given, stays bool) error {
	r := g.Record
	if g.Client < 0 || len(g.Shards) != len(r.Shards) {
		g.close()
		return fmt.Errorf("client %d came with %d of %d connections", r.ID, len(g.Shards), len(r.Shards))
	}
	file := os.NewFile(uintptr(g.Client), "client")
	conn, err := net.FileConn(file)
	_ = file.Close()
	g.Client = -1
	if err != nil {
		g.close()
		return fmt.Errorf("go on with client %d: %w", r.ID, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err = f.ctx.Err(); err == nil && f.clients[r.ID] != nil {
		err = fmt.Errorf("there is a client %d already", r.ID)
	}
	if err != nil {
		g.close()
		_ = conn.Close()
		return err
	}
	c := newClient(f, r.ID)
	c.stays = stays
	if err := c.resume(conn, g); err != nil {
		_ = conn.Close()
		return err
	}
	f.lastID = max(f.lastID, r.ID)
	f.clients[c.id] = c
	f.wg.Add(1) // until forget
	return nil
}

// resume goes on with a client at the place where it was left. The caller holds f.mu.
func (c *client) resume(conn net.Conn, g Given) error {
	r := g.Record
	c.vis.begin(c, addrText(conn.RemoteAddr()), addrText(conn.LocalAddr()))
	c.restore(r)
	c.mu.Lock()
	defer c.mu.Unlock() // events wait until everything is in its place
	var err error
	for n, s := range r.Shards {
		d := departed{s, c.f.number(s.Shard), g.Shards[n]}
		g.Shards[n] = -1
		if err == nil && d.i < 0 {
			err = fmt.Errorf("client %d has something at shard %s, which is not known here", r.ID, s.Shard)
		}
		if err != nil {
			closeFiles([]departed{d})
			continue
		}
		err = c.rejoin(d)
	}
	if err == nil {
		err = c.restoreHeld(r)
	}
	if err == nil {
		c.sock, err = c.f.o.Loops.Take(conn, c.loop, c.event)
	}
	if err != nil {
		c.over = true
		for _, k := range c.conns {
			if k != nil {
				k.gone = true
				k.sock.Close()
			}
		}
		return err
	}
	c.out = outlet{mu: &c.mu, sock: c.sock, moved: c.tookSome}
	if len(r.Input) > 0 {
		c.in, c.w, c.more = r.Input, len(r.Input), true
	}
	return nil
}

// number returns a shard's; negative: it is not known.
func (f *Front) number(name string) int {
	return slices.IndexFunc(f.shards(), func(s Shard) bool { return s.Name == name && !s.gone })
}

// shardName names a shard; empty: none.
func (f *Front) shardName(i int) string {
	if i < 0 || i >= len(f.shards()) {
		return ""
	}
	return f.shards()[i].Name
}

func (c *client) groupText(group int) RecordGroup {
	if c.f.o.Cluster != nil {
		return RecordGroup{Slot: group}
	}
	return RecordGroup{Shard: c.f.shardName(group)}
}

func (c *client) groupOf(g RecordGroup) int {
	if c.f.o.Cluster != nil {
		return g.Slot
	}
	return c.f.number(g.Shard)
}

// record describes the client, of which nothing is under way. Only who drives the client calls it; it holds c.mu.
func (c *client) record() *Record {
	v := &c.vis
	r := &Record{
		ID: c.id, AgeMS: time.Since(c.born).Milliseconds(), IdleS: c.f.tick.Load() - v.seen.Load(), Proto: c.proto, DB: c.db, Authed: c.authed, User: c.user, Password: c.password,
		Quiet: c.quiet, Skip: c.skip, Caching: c.caching, Tracking: c.tracking, Name: c.name, Input: slices.Clone(c.in[c.r:c.w]),
	}
	for _, s := range c.settings {
		r.Settings = append(r.Settings, RecordSetting{s.key, s.raw})
	}
	for kind, names := range c.subs {
		for name, at := range names {
			r.Subs = append(r.Subs, RecordSub{kind, []byte(name), c.f.shardName(at)})
		}
	}
	if k := c.watch; k != nil {
		r.Watch = &RecordWatch{k.name(), c.watchGen, c.groupText(c.watchGroup)}
	}
	if t := &c.txn; t.on {
		r.Txn = &RecordTxn{Group: c.groupText(t.group), Keyed: t.keyed, Held: t.held, Bad: t.bad, N: t.n, Gen: t.gen, Keys: t.keys, Moved: t.moved, Sent: t.sent, Bytes: [2]int{t.bytes, t.sentBytes}}
		if t.to != nil {
			r.Txn.Shard = t.to.name()
		}
		for _, s := range t.dbs {
			r.Txn.DBs = append(r.Txn.DBs, RecordSelect{s.at, s.db})
		}
	}
	for _, d := range c.carried {
		r.Shards = append(r.Shards, d.RecordShard)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if r.Lib, r.LibVer = v.lib, v.ver; v.row.Load() != nil {
		r.Last, r.LastSub = v.row.Load().Name, strings.TrimPrefix(v.sub, "|")
	}
	return r
}

// restore is the reverse of record, but for what is at shards.
func (c *client) restore(r *Record) {
	c.born = time.Now().Add(-time.Duration(r.AgeMS) * time.Millisecond)
	c.session = session{proto: r.Proto, db: r.DB, authed: r.Authed, user: r.User, password: r.Password, quiet: r.Quiet, skip: r.Skip, caching: r.Caching, tracking: r.Tracking}
	for _, s := range r.Settings {
		c.settings = append(c.settings, setting{s.Key, s.Raw})
	}
	c.rename(r.Name)
	v := &c.vis
	v.proto.Store(int32(r.Proto))
	v.db.Store(int32(r.DB))
	v.seen.Store(c.f.tick.Load() - r.IdleS)
	v.known.Store(r.Authed)
	v.txn.Store(r.Txn != nil)
	v.mu.Lock()
	v.lib, v.ver, v.user = r.Lib, r.LibVer, string(r.User)
	v.mu.Unlock()
	if r.Last != "" {
		args := [][]byte{[]byte(strings.ToUpper(r.Last)), []byte(r.LastSub)}
		v.show(c.f.o.Table().Classify(args).Row, args)
	}
}

// restoreHeld restores what the client holds at shards, its connections to which are there again. The caller holds c.mu.
func (c *client) restoreHeld(r *Record) error {
	at := func(name string) *conn {
		if i := c.f.number(name); i >= 0 && i < len(c.conns) {
			return c.conns[i]
		}
		return nil
	}
	for _, s := range r.Subs {
		if s.Kind < 0 || s.Kind >= subKinds {
			return fmt.Errorf("%w: a subscription of kind %d", ErrRecord, s.Kind)
		}
		if c.subs[s.Kind] == nil {
			c.subs[s.Kind] = map[string]int{}
		}
		c.subs[s.Kind][string(s.Name)] = allShards
		if s.Shard != "" {
			c.subs[s.Kind][string(s.Name)] = c.f.number(s.Shard)
		}
	}
	c.vis.setSubs(&c.subs)
	lost := func(what string) error {
		return fmt.Errorf("%w: client %d came without the connection that has %s", ErrRecord, r.ID, what)
	}
	if w := r.Watch; w != nil {
		if c.watch = at(w.Shard); c.watch == nil {
			return lost("its WATCH")
		}
		c.watchGen, c.watchGroup = w.Gen, c.groupOf(w.Group)
	}
	t := r.Txn
	if t == nil {
		return nil
	}
	c.txn = transaction{on: true, group: c.groupOf(t.Group), keyed: t.Keyed, held: t.Held, bytes: t.Bytes[0], bad: t.Bad, n: t.N, gen: t.Gen, keys: t.Keys, moved: t.Moved, sent: t.Sent, sentBytes: t.Bytes[1]}
	for _, s := range t.DBs {
		c.txn.dbs = append(c.txn.dbs, selected{s.At, s.DB})
	}
	if t.Shard != "" {
		if c.txn.to = at(t.Shard); c.txn.to == nil {
			return lost("its transaction")
		}
	}
	return nil
}
