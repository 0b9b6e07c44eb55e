// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"redoubt/internal/reshard"
)

// Path is what one server gives to another one.
type Path struct {
	From, To string // host:port of primaries
	Replicas int    // of To that have to have what is copied
	Mine     func(key []byte) bool
}

// CarryOptions are what a Carrier works with.
type CarryOptions struct {
	Name     string // of the deployment: one carrier of that name works at a time
	User     string
	Password string
	Paths    []Path
	Keys     func(command []byte) func(args [][]byte, dst []int) (at []int, known bool) // as in WholeOptions
	Rate     reshard.Rate
	// Confirm says whether this process is still the one to do it. It is asked when all is connected and nothing was written: who replaces this
	// process ends its connections.
	Confirm func(ctx context.Context) error
}

// Carrier copies keys from servers to servers, and keeps the copies in step with what is written, until the owner of a ring says that the copies are
// the keys. It knows nothing of the ring: who writes where is the owner's business. An error ends it; the next one begins anew.
type Carrier struct {
	o CarryOptions
	w *Whole
}

// Carry connects, and begins to note what is written.
func Carry(ctx context.Context, o CarryOptions) (_ *Carrier, err error) {
	w := &Whole{o: WholeOptions{
		Source: Source{At: Endpoint{User: o.User, Password: o.Password}, DB: -1}, Target: Endpoint{User: o.User, Password: o.Password},
		Keys: o.Keys, Rate: o.Rate, Note: func(string) {}, Told: func(Progress) {},
	}}
	c := &Carrier{o: o, w: w}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	for _, p := range o.Paths {
		g, err := w.path(ctx, o.Name, p)
		if err != nil {
			return nil, err
		}
		w.legs = append(w.legs, g)
	}
	if err := o.Confirm(ctx); err != nil {
		return nil, err
	}
	return c, w.each(ctx, func(ctx context.Context, g *leg) error { return g.follow(ctx) })
}

// path connects the two servers of a path, and ends the connections of an earlier carrier.
func (w *Whole) path(ctx context.Context, deployment string, p Path) (_ *leg, err error) {
	temp := movingPrefix + "path-" + strconv.Itoa(len(w.legs)) + "}" // each path puts one value together at a time
	g := &leg{Whole: w, from: origin{addr: p.From, owns: p.Mine}, name: "redoubt-mover:" + deployment + ":" + p.From + ":" + p.To}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	at := w.o.Source.At
	for _, l := range []struct {
		to   **link
		addr string
	}{{&g.src, p.From}, {&g.to, p.To}, {&g.look, p.To}} {
		if *l.to, err = at.dial(ctx, l.addr, ""); err != nil {
			return nil, err
		}
	}
	ours := session{name: g.name}
	for _, l := range []*link{g.src, g.to} { // before our own have the name
		if err := ours.alone(ctx, l); err != nil {
			return nil, err
		}
	}
	for _, l := range []*link{g.src, g.to, g.look} {
		if _, err := l.ask(ctx, "CLIENT", "SETNAME", g.name); err != nil {
			return nil, err
		}
	}
	g.c = &copier{
		src: g.src, tgt: g.to, limit: bigBytes, big: map[name]int64{}, temp: func(name) (string, error) { return temp, nil },
		count: func(keys, bytes, _ int64) { w.keys.Add(keys); w.bytes.Add(bytes) },
	}
	if err := g.learn(ctx); err != nil {
		return nil, err
	}
	return g, nil
}

// follow begins to note what is written at the source. What the target has of these keys already is of an earlier carrier, or of nobody.
func (g *leg) follow(ctx context.Context) error {
	if err := g.sweep(ctx); err != nil {
		return err
	}
	l, err := g.listener(ctx)
	if err != nil {
		return err
	}
	if err := g.listen(ctx, l); err != nil {
		return err
	}
	if g.scans, err = g.databases(ctx); err != nil {
		return err
	}
	g.point = point{Cursor: "0", Mirror: true, Addr: g.from.addr, RunID: g.info["run_id"], ReplID: l.replid, Offset: l.offset()}
	return nil
}

// Close ends the connections and waits for the goroutines.
func (c *Carrier) Close() {
	for _, g := range c.w.legs {
		g.close()
	}
	c.w.legs = nil
}

// Copied returns how many keys and bytes were copied, each time counted.
func (c *Carrier) Copied() (keys, bytes int64) { return c.w.keys.Load(), c.w.bytes.Load() }

// Total is how many keys the sources have.
func (c *Carrier) Total() (n int64) {
	seen := map[string]bool{}
	for _, g := range c.w.legs {
		if !seen[g.from.addr] {
			seen[g.from.addr] = true
			for _, k := range g.keyspace() {
				n += k
			}
		}
	}
	return n
}

// CopyAll copies everything once, and what was written meanwhile.
func (c *Carrier) CopyAll(ctx context.Context) error {
	left := make(chan struct{})
	var once sync.WaitGroup
	once.Add(len(c.w.legs))
	go func() { once.Wait(); close(left) }()
	return c.w.each(ctx, func(ctx context.Context, g *leg) error {
		err := g.everything(ctx)
		once.Done()
		for err == nil {
			select {
			case <-left:
				return nil
			default:
			}
			if err = rest(ctx, followEvery); err == nil {
				err = g.catchUp(ctx, c.o.Rate)
			}
		}
		return err
	})
}

// everything is the first copy, and taking from the target what the source has not.
func (g *leg) everything(ctx context.Context) error {
	for !g.point.Copied || g.point.Mirror {
		do := g.part
		if g.point.Copied {
			g.point.Mirror, do = false, g.mirror
		}
		if err := do(ctx); err != nil {
			return err
		}
	}
	return nil
}

// CatchUp copies what was written since, and reports whether little is left.
func (c *Carrier) CatchUp(ctx context.Context) (near bool, err error) {
	began := time.Now()
	if err := c.w.each(ctx, func(ctx context.Context, g *leg) error {
		if err := g.catchUp(ctx, c.o.Rate); err != nil || g.point.Copied {
			return err
		}
		return g.everything(ctx)
	}); err != nil {
		return false, err
	}
	lag, dirty, err := c.w.behind(ctx)
	return lag <= inStepBytes && dirty <= inStepKeys && time.Since(began) < time.Second, err
}

// Drain copies what was written until now, while nobody writes those keys, and waits for the replicas that have to have it.
func (c *Carrier) Drain(ctx context.Context) error {
	return c.w.each(ctx, func(ctx context.Context, g *leg) error {
		if err := g.drain(ctx); err != nil {
			return err
		}
		return c.acknowledged(ctx, g)
	})
}

// Acknowledged waits until the replicas that have to have it have what was copied until now.
func (c *Carrier) Acknowledged(ctx context.Context) error { return c.w.each(ctx, c.acknowledged) }

func (c *Carrier) acknowledged(ctx context.Context, g *leg) error {
	need := 0
	for _, p := range c.o.Paths {
		if p.To == g.to.addr {
			need = max(need, p.Replicas)
		}
	}
	if need == 0 {
		return nil
	}
	rep, err := g.to.ask(ctx, "WAIT", strconv.Itoa(need), strconv.FormatInt(ackTime.Milliseconds(), 10))
	if err == nil && rep.num < int64(need) {
		err = fmt.Errorf("%s: %d of %d replicas have what was copied", g.to.addr, rep.num, need)
	}
	return err
}

// Expel ends connections at the sources, by their names and users.
func (c *Carrier) Expel(ctx context.Context, which func(name, user string) bool) error {
	for _, g := range c.w.legs {
		rep, err := g.src.ask(ctx, "CLIENT", "LIST")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(rep.body)) {
			f := strings.Fields(line)
			word := func(name string) (value string) {
				for _, w := range f {
					if v, is := strings.CutPrefix(w, name+"="); is {
						value = v
					}
				}
				return value
			}
			if len(f) == 0 || word("flags") == "S" || !which(word("name"), word("user")) {
				continue
			}
			if id, ok := strings.CutPrefix(f[0], "id="); ok {
				g.src.add("CLIENT", "KILL", "ID", id)
			}
		}
		if _, err := g.src.round(ctx); err != nil { // one that is gone already is an error to the server
			return err
		}
	}
	return nil
}

// Clean removes keys of one server that are not its own any more, or were never.
type Clean struct {
	Addr  string
	Stale func(key []byte) bool
}

// Remove carries a Clean out, slowly enough for the server's clients, and returns how many keys it removed.
func (c Clean) Remove(ctx context.Context, user, password string, confirm func(context.Context) error) (n int64, err error) {
	l, err := Endpoint{User: user, Password: password}.dial(ctx, c.Addr, "redoubt-mover:clean")
	if err != nil {
		return 0, err
	}
	defer l.close()
	rep, err := l.ask(ctx, "INFO")
	if err != nil {
		return 0, err
	}
	if fields(rep.body)["role"] != "master" {
		return 0, fmt.Errorf("%s: %w", c.Addr, errDemoted)
	}
	if err := confirm(ctx); err != nil {
		return 0, err
	}
	for db := range keyspace(rep.body) {
		for cursor := "0"; ; {
			keys, next, err := scanPage(ctx, l, db, cursor)
			if err != nil {
				return n, err
			}
			stale := slices.DeleteFunc(keys, func(k string) bool { return strings.HasPrefix(k, ownPrefix) || !c.Stale([]byte(k)) })
			for part := range slices.Chunk(stale, batchKeys) {
				rep, err := l.ask(ctx, append([]string{"UNLINK"}, part...)...)
				if err != nil {
					return n, err
				}
				n += rep.num
			}
			if cursor = next; cursor == "0" {
				break
			}
		}
	}
	return n, nil
}
