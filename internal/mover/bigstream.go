// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"math"
	"strconv"
	"strings"
)

// stream copies the entries of a stream, then what is not an entry: its counters, its groups, their consumers and what
// these have not acknowledged.
func (p *pieces) stream(ctx context.Context) (bool, error) {
	src, t := p.src, p.tgt
	for from := "-"; ; {
		rep, err := src.ask(ctx, "XRANGE", p.key, from, "+", "COUNT", strconv.FormatInt(p.size, 10))
		if err != nil {
			return false, err
		}
		if len(rep.items) == 0 {
			break
		}
		for _, e := range rep.items {
			if len(e.items) != 2 {
				continue
			}
			id := string(e.items[0].body)
			values := bodies(e.items[1].items)
			for _, v := range values {
				p.bytes += int64(len(v))
			}
			p.bytes += 32
			p.ask()
			t.addValues([]string{"XADD", p.temp, id}, values...)
			from = after(id)
		}
		if goOn, err := p.now(ctx, int64(len(rep.items))); !goOn {
			return false, err
		}
	}
	return p.extras(ctx)
}

// now sends a piece and reads its answers.
func (p *pieces) now(ctx context.Context, elements int64) (goOn bool, err error) {
	if _, err := p.tgt.must(ctx); err != nil {
		return false, err
	}
	return p.written(ctx, elements)
}

// flat reads a reply of names and values.
func flat(r reply) map[string]reply {
	m := map[string]reply{}
	for i := 0; i+1 < len(r.items); i += 2 {
		m[string(r.items[i].body)] = r.items[i+1]
	}
	return m
}

func (p *pieces) extras(ctx context.Context) (bool, error) {
	src, t := p.src, p.tgt
	src.add("XINFO", "STREAM", p.key)
	src.add("XINFO", "GROUPS", p.key)
	reps, err := src.must(ctx)
	if err != nil {
		return false, err
	}
	x := flat(reps[0])
	if p.made == 0 { // no entry is left, but the rest is there: the whole is small
		return true, nil
	}
	p.ask()
	words := []string{"XSETID", p.temp, string(x["last-generated-id"].body)}
	if added, told := x["entries-added"]; told { // by servers of 7.0 or later
		words = append(words, "ENTRIESADDED", num(added), "MAXDELETEDID", string(x["max-deleted-entry-id"].body))
	}
	t.add(words...)
	for _, g := range reps[1].items {
		if err := p.group(ctx, flat(g)); err != nil {
			return false, err
		}
	}
	return p.now(ctx, 0)
}

// after is the first id behind one, for servers that know no open ranges.
func after(id string) string {
	ms, seq, _ := strings.Cut(id, "-")
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil || n == math.MaxUint64 {
		return "(" + id
	}
	return ms + "-" + strconv.FormatUint(n+1, 10)
}

func num(r reply) string { return strconv.FormatInt(r.num, 10) }

// group collects what makes one consumer group.
func (p *pieces) group(ctx context.Context, g map[string]reply) error {
	src, t := p.src, p.tgt
	name, last := string(g["name"].body), string(g["last-delivered-id"].body)
	p.ask()
	if read, told := g["entries-read"]; !told || read.null {
		t.add("XGROUP", "CREATE", p.temp, name, last)
	} else {
		t.add("XGROUP", "CREATE", p.temp, name, last, "ENTRIESREAD", num(read))
	}
	rep, err := src.ask(ctx, "XINFO", "CONSUMERS", p.key, name)
	if err != nil {
		return err
	}
	for _, c := range rep.items {
		p.ask()
		t.add("XGROUP", "CREATECONSUMER", p.temp, name, string(flat(c)["name"].body))
	}
	for from := "-"; ; {
		rep, err := src.ask(ctx, "XPENDING", p.key, name, from, "+", strconv.Itoa(pieceElements))
		if err != nil || len(rep.items) == 0 {
			return err
		}
		for _, e := range rep.items {
			if len(e.items) != 4 {
				continue
			}
			id := string(e.items[0].body)
			p.ask()
			t.add("XCLAIM", p.temp, name, string(e.items[1].body), "0", id, "IDLE", num(e.items[2]), "RETRYCOUNT", num(e.items[3]), "FORCE", "JUSTID", "LASTID", last)
			from = after(id)
		}
		if _, err := t.must(ctx); err != nil {
			return err
		}
	}
}
