// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"fmt"
	"strconv"

	"redoubt/internal/reshard"
)

const (
	pieceElements = 2000 // of a piece, at most
	pieceFirst    = 100  // of the first piece, before it is known how large elements are
)

// copyBig copies a large value in pieces into a temporary key at the place of its own, and renames it. A value that is written meanwhile
// is left for the next round: it counts as written.
func (c *copier) copyBig(ctx context.Context, w weighed, rate reshard.Rate) error {
	if err := c.src.use(ctx, w.db); err != nil {
		return err
	}
	if err := c.tgt.use(ctx, c.place(w.db)); err != nil {
		return err
	}
	c.src.add("TYPE", w.key)
	c.addEnd(w.key)
	reps, err := c.src.must(ctx)
	if err != nil {
		return err
	}
	kind := string(reps[0].body)
	w.ttl = max(0, reps[1].num)
	p := &pieces{copier: c, name: w.name, rate: rate, size: pieceFirst}
	copy := map[string]func(context.Context) (bool, error){
		"string": p.text, "list": p.list, "hash": p.hash, "set": p.set, "zset": p.zset, "stream": p.stream,
	}[kind]
	if copy == nil || kind == "hash" && c.fieldTTL { // a hash's fields may have times to live, which no piece tells
		return c.copyWhole(ctx, w.name)
	}
	if p.temp, err = c.temp(w.name); err != nil {
		return err
	}
	if err := p.remove(ctx); err != nil {
		return err
	}
	whole, err := copy(ctx)
	if err != nil {
		return err
	}
	if !whole || p.made == 0 {
		return p.gone(ctx, whole)
	}
	return p.rename(ctx, w.ttl)
}

// copyWhole copies a value by DUMP, whatever its size.
func (c *copier) copyWhole(ctx context.Context, n name) error {
	c.src.add("DUMP", n.key)
	c.addEnd(n.key)
	reps, err := c.src.must(ctx)
	if err != nil {
		return err
	}
	w := weighed{name: n}
	if !reps[0].null && reps[1].num != -2 {
		w.value, w.ttl = reps[0].body, max(0, reps[1].num)
	}
	g, err := c.give(ctx, []weighed{w})
	if err != nil {
		return err
	}
	return c.answered(ctx, g, reshard.Rate{})
}

// pieces is one large value on its way.
type pieces struct {
	*copier
	name
	temp  string
	rate  reshard.Rate
	size  int64 // elements of the next piece
	made  int64 // pieces that were written
	bytes int64 // of the piece being made
}

// gone ends a copy that was overtaken. A value that turned out empty is gone at the source.
func (p *pieces) gone(ctx context.Context, whole bool) error {
	if err := p.remove(ctx); err != nil || !whole {
		return err
	}
	return p.copyWhole(ctx, p.name)
}

func (p *pieces) remove(ctx context.Context) error {
	p.ask()
	p.tgt.add("UNLINK", p.temp)
	_, err := p.tgt.must(ctx)
	return err
}

// rename gives the value its name. A target that takes keys of a slot it does not own refuses a command about two keys of which one
// is missing, so there is something of that name first.
func (p *pieces) rename(ctx context.Context, ttl int64) error {
	t := p.tgt
	if ttl > 0 {
		p.ask()
		t.add(p.expire(), p.temp, strconv.FormatInt(ttl, 10))
	}
	if p.asking {
		p.ask()
		t.add("SET", p.key, "")
	}
	p.ask()
	t.add("RENAME", p.temp, p.key)
	reps, err := t.round(ctx)
	if err != nil {
		return err
	}
	err = t.firstError(reps)
	if err != nil && ttl > 0 { // its time may have come just now: then there is nothing to rename
		return p.copyWhole(ctx, p.name)
	}
	p.count(1, 0, 0)
	return err
}

func (c *copier) expire() string {
	if c.relative {
		return "PEXPIRE"
	}
	return "PEXPIREAT"
}

// write sends one piece, while the next is read. goOn is false when the value was written meanwhile.
func (p *pieces) write(ctx context.Context, head []string, values [][]byte) (goOn bool, err error) {
	for _, v := range values {
		p.bytes += int64(len(v))
	}
	p.ask()
	p.tgt.addValues(head, values...)
	return p.flush(ctx, int64(len(values)))
}

// flush sends what was collected for the target, when it has answered the piece before.
func (p *pieces) flush(ctx context.Context, elements int64) (goOn bool, err error) {
	if err := p.settle(ctx); err != nil {
		return false, err
	}
	if err := p.tgt.send(ctx); err != nil {
		return false, err
	}
	goOn, err = p.written(ctx, elements)
	if err != nil || goOn {
		return goOn, err
	}
	return false, p.settle(ctx)
}

// written accounts for a piece, chooses the size of the next, and says whether the value is still what it was. While clients wait it is, and
// where nobody knows it is taken to be.
func (p *pieces) written(ctx context.Context, elements int64) (goOn bool, err error) {
	p.made++
	p.count(0, p.bytes, 1)
	if elements > 0 {
		p.size = min(max(batchBytes/max(1, p.bytes/elements), 10), pieceElements)
	}
	if p.still || p.copier.stream == nil {
		p.bytes = 0
		return true, nil
	}
	err = rest(ctx, p.rate.Rest(0, p.bytes, 0))
	p.bytes = 0
	return err == nil && !p.copier.stream.written(p.name), err
}

// settle reads the answer to the piece before.
func (p *pieces) settle(ctx context.Context) error {
	reps, err := p.tgt.receive(ctx)
	if err != nil {
		return err
	}
	return p.tgt.firstError(reps)
}

func (p *pieces) end(ctx context.Context, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	return true, p.settle(ctx)
}

// text copies a string. Its last byte is written first: a server moves a string that grows now and then, all of it, which takes ever longer.
func (p *pieces) text(ctx context.Context) (bool, error) {
	rep, err := p.src.ask(ctx, "STRLEN", p.key)
	if err != nil {
		return false, err
	}
	if rep.num > 0 {
		p.ask()
		p.tgt.add("SETRANGE", p.temp, strconv.FormatInt(rep.num-1, 10), "\x00")
		if _, err := p.tgt.must(ctx); err != nil {
			return false, err
		}
	}
	n, goOn, err := p.ranges(ctx)
	if !goOn || err != nil || n >= rep.num {
		return goOn, err
	}
	if err := p.remove(ctx); err != nil { // it became shorter, where nobody says what is written
		return false, err
	}
	_, goOn, err = p.ranges(ctx)
	return goOn, err
}

// ranges copies a string's parts up to its end, which is at n.
func (p *pieces) ranges(ctx context.Context) (n int64, goOn bool, err error) {
	for {
		rep, err := p.src.ask(ctx, "GETRANGE", p.key, strconv.FormatInt(n, 10), strconv.FormatInt(n+batchBytes-1, 10))
		if err != nil || len(rep.body) == 0 {
			goOn, err = p.end(ctx, err)
			return n, goOn, err
		}
		if goOn, err := p.write(ctx, []string{"SETRANGE", p.temp, strconv.FormatInt(n, 10)}, [][]byte{rep.body}); !goOn {
			return n, false, err
		}
		n += int64(len(rep.body))
	}
}

func (p *pieces) list(ctx context.Context) (bool, error) {
	for at := int64(0); ; {
		rep, err := p.src.ask(ctx, "LRANGE", p.key, strconv.FormatInt(at, 10), strconv.FormatInt(at+p.size-1, 10))
		if err != nil || len(rep.items) == 0 {
			return p.end(ctx, err)
		}
		at += int64(len(rep.items))
		goOn, err := p.write(ctx, []string{"RPUSH", p.temp}, bodies(rep.items))
		if !goOn {
			return false, err
		}
	}
}

func bodies(items []reply) [][]byte {
	out := make([][]byte, 0, len(items))
	for _, it := range items {
		out = append(out, it.body)
	}
	return out
}

func (p *pieces) hash(ctx context.Context) (bool, error) {
	return p.scan(ctx, "HSCAN", func(items [][]byte) ([]string, [][]byte) { return []string{"HSET", p.temp}, items })
}

func (p *pieces) set(ctx context.Context) (bool, error) {
	return p.scan(ctx, "SSCAN", func(items [][]byte) ([]string, [][]byte) { return []string{"SADD", p.temp}, items })
}

func (p *pieces) zset(ctx context.Context) (bool, error) {
	return p.scan(ctx, "ZSCAN", func(items [][]byte) ([]string, [][]byte) {
		for i := 0; i+1 < len(items); i += 2 { // ZSCAN has the member first, ZADD the score
			items[i], items[i+1] = items[i+1], items[i]
		}
		return []string{"ZADD", p.temp}, items
	})
}

// scan walks over a hash, a set or a sorted set. What it meets twice is written twice, which changes nothing.
func (p *pieces) scan(ctx context.Context, verb string, as func([][]byte) ([]string, [][]byte)) (bool, error) {
	for cursor := "0"; ; {
		rep, err := p.src.ask(ctx, verb, p.key, cursor, "COUNT", strconv.FormatInt(p.size, 10))
		if err != nil {
			return false, err
		}
		if len(rep.items) != 2 {
			return false, fmt.Errorf("%s answered %s with %d parts", p.src.addr, verb, len(rep.items))
		}
		cursor = string(rep.items[0].body)
		if items := bodies(rep.items[1].items); len(items) > 0 {
			head, values := as(items)
			if goOn, err := p.write(ctx, head, values); !goOn {
				return false, err
			}
		}
		if cursor == "0" {
			return p.end(ctx, nil)
		}
	}
}
