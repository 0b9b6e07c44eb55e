// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"time"
)

// element is the life of one unique element of a set.
type element struct {
	add, rem *op
}

// sets judges one set: what was acknowledged is there until it is removed, what was removed stays away, what was refused
// was never there.
func (v *verdict) sets(key string, ops []op, j judging) {
	of := map[string]*element{}
	var reads []op
	for i := range ops {
		switch o := &ops[i]; o.Kind {
		case "sadd":
			of[o.Arg] = &element{add: o}
			if o.Outcome == ok && o.Out == "0" {
				v.fatal = append(v.fatal, fmt.Sprintf("SADD %s %s was executed twice", key, o.Arg))
			}
		case "smembers":
			if o.Outcome == ok {
				reads = append(reads, *o)
			}
		}
	}
	for i := range ops {
		if o := &ops[i]; o.Kind == "srem" && o.Outcome != refused {
			of[o.Arg].rem = o
			if o.Outcome == ok && o.Out == "0" {
				v.gone(of[o.Arg].add.End, fmt.Sprintf("%s %s was gone when it was removed", key, o.Arg))
			}
		}
	}
	slices.SortFunc(reads, func(a, b op) int { return int(a.Start - b.Start) })
	w := watch{key: key, of: of, missing: map[string]bool{}, seen: map[string]time.Duration{}, linear: j.linearReads}
	for _, r := range reads {
		v.setRead(w, r)
	}
}

// watch is what the judge remembers from read to read of one set.
type watch struct {
	key     string
	of      map[string]*element
	missing map[string]bool          // already counted
	seen    map[string]time.Duration // when the first read that shows it ended
	linear  bool
}

// setRead holds one read against the life of every element. The reads come in the order of their starts.
func (v *verdict) setRead(w watch, r op) {
	in := map[string]bool{}
	for _, e := range r.All {
		if in[e] || w.of[e] == nil || w.of[e].add.Outcome == refused {
			v.fatal = append(v.fatal, fmt.Sprintf("SMEMBERS %s shows %s twice, or although it was refused or never sent", w.key, e))
		}
		in[e] = true
	}
	late := func(what string) {
		if w.linear {
			v.stale = append(v.stale, what)
		} else {
			v.lax++
		}
	}
	for name, e := range w.of {
		stays := e.rem == nil || e.rem.Start > r.End
		due := stays && e.add.Outcome == ok && e.add.End < r.Start
		gone := e.rem != nil && e.rem.Outcome == ok && e.rem.End < r.Start
		first, known := w.seen[name]
		switch {
		case due && !in[name] && r.Final && !w.missing[name]:
			w.missing[name] = true
			v.gone(e.add.End, w.key+" "+name)
		case due && !in[name] && !r.Final:
			late(fmt.Sprintf("SMEMBERS %s at %s misses %s", w.key, r.Start, name))
		case stays && known && first < r.Start && !in[name] && !due:
			late(fmt.Sprintf("SMEMBERS %s at %s misses %s, which was seen at %s", w.key, r.Start, name, first))
		case gone && in[name] && r.Final && !w.missing[name]:
			w.missing[name] = true
			v.again++
			v.gone(e.rem.End, fmt.Sprintf("%s %s came back", w.key, name))
		case gone && in[name] && !r.Final:
			late(fmt.Sprintf("SMEMBERS %s at %s shows %s, which was removed", w.key, r.Start, name))
		}
	}
	for e := range in {
		if at, known := w.seen[e]; !known || r.End < at {
			w.seen[e] = r.End
		}
	}
}

// lists judges one queue: each element comes out at most once, and an acknowledged one that neither came out nor is left
// must have been taken by a pop that was not answered.
func (v *verdict) lists(key string, ops []op) {
	pushed, popped, left := map[string]op{}, map[string]op{}, map[string]bool{}
	open := 0
	read := false
	for _, o := range ops {
		if o.Kind == "rpush" {
			pushed[o.Arg] = o
		}
	}
	for _, o := range ops {
		switch {
		case o.Kind == "lpop" && o.Outcome == unknown:
			open++
		case o.Kind == "lpop" && o.Outcome == ok && !o.Nil:
			if first, is := popped[o.Out]; is {
				v.again++
				v.gone(min(first.End, o.End), fmt.Sprintf("%s of %s came out twice: the first pop was lost", o.Out, key))
			}
			popped[o.Out] = o
		case o.Kind == "lrange" && o.Outcome == ok && o.Final:
			read = true
			clear(left)
			for _, e := range o.All {
				if left[e] {
					v.fatal = append(v.fatal, fmt.Sprintf("%s is twice in %s", e, key))
				}
				left[e] = true
			}
		}
	}
	var gone []string
	for e, push := range pushed {
		pop, taken := popped[e]
		switch how, there := push.Outcome, taken || left[e]; {
		case there && how == refused:
			v.fatal = append(v.fatal, fmt.Sprintf("RPUSH %s %s was refused and executed", key, e))
		case taken && left[e]:
			v.again++
			v.gone(pop.End, fmt.Sprintf("%s %s came out and is there again", key, e))
		case !there && how == ok && read:
			gone = append(gone, e)
		}
	}
	if len(gone) > open {
		slices.Sort(gone)
		for _, e := range gone[open:] {
			v.lostElements = append(v.lostElements, key+" "+e)
			if open == 0 { // else it may be another one of them that was lost
				v.lostAt = append(v.lostAt, pushed[e].End)
			}
		}
	}
}
