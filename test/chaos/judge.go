// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// keyTime bounds the search for an order of one key's operations.
const keyTime = 10 * time.Second

// judging is what the judge needs to know about a run.
type judging struct {
	linearReads bool   // reads are promised to be linearizable, not writes alone
	dir         string // where pictures go; empty: nowhere
	hit         int    // the host that one fault hit; the outage of the others is counted by itself
}

// verdict is what the histories say.
type verdict struct {
	ok, refused, unknown int
	writes               int           // of the ok ones
	others               time.Duration // the longest time without any of hosts that were not hit
	gap, gapAt           time.Duration // the longest time without any acknowledged write, and when it began
	keys, undecided      int
	unordered            []string        // keys whose acknowledged operations fit no order
	lostElements         []string        // acknowledged and gone, from sets and lists
	lostAt               []time.Duration // when the writes of these that are known were acknowledged
	again                int             // of these: removed and there again, or taken twice
	stale                []string        // linearizable reads that missed something, or showed what was gone
	lax                  int             // the same of local reads: no promise, only counted
	fatal                []string        // what no mode excuses: refused and executed all the same, executed twice, transactions torn
}

// lost counts evidence of lost acknowledged writes.
func (v verdict) lost() int { return len(v.lostElements) + len(v.unordered) }

// span is the time from the first to the last acknowledgement of what was lost.
func (v verdict) span() time.Duration {
	if len(v.lostAt) == 0 {
		return 0
	}
	return slices.Max(v.lostAt) - slices.Min(v.lostAt)
}

// gone notes a lost write that was acknowledged at that time.
func (v *verdict) gone(at time.Duration, what string) {
	v.lostElements = append(v.lostElements, what)
	v.lostAt = append(v.lostAt, at)
}

func (v verdict) String() string {
	s := fmt.Sprintf("  %d ok, %d refused, %d unknown; longest time without an acknowledged write %s, from %.3f s on\n",
		v.ok, v.refused, v.unknown, v.gap.Round(time.Millisecond), v.gapAt.Seconds())
	s += fmt.Sprintf("  %d keys judged, %d undecided; %d keys without an order, %d elements lost, %d stale reads (and %d local ones), %d breaches",
		v.keys, v.undecided, len(v.unordered), len(v.lostElements), len(v.stale), v.lax, len(v.fatal))
	return s
}

// verdict is an error if a promise was broken; strict: nothing may be lost.
func (v verdict) verdict(strict bool) error {
	var errs []error
	say := func(what string, of []string) {
		if len(of) > 0 {
			errs = append(errs, fmt.Errorf("%d × %s: %s", len(of), what, strings.Join(of[:min(5, len(of))], "; ")))
		}
	}
	say("breach", v.fatal)
	if strict {
		say("no order of acknowledged operations", v.unordered)
		say("lost", v.lostElements)
		say("stale", v.stale)
	}
	return errors.Join(errs...)
}

// withinDial is an error if one fault lost writes of a longer time than max-loss.time allows.
func (v verdict) withinDial(o options) error {
	if o.maxLoss == 0 || len(o.script) != 1 || v.span() <= o.maxLoss {
		return nil
	}
	return fmt.Errorf("lost writes were acknowledged over %s; max-loss.time allows %s", v.span(), o.maxLoss)
}

// judge looks at every key by itself.
func judge(ops []op, j judging) verdict {
	v := verdict{}
	keys := map[string][]op{}
	var acked, others []time.Duration
	last := time.Duration(0) // end of the traffic
	for _, o := range ops {
		keys[o.Key] = append(keys[o.Key], o)
		if !o.Final {
			last = max(last, o.End)
		}
		switch o.Outcome {
		case ok:
			v.ok++
			if writes(o.Kind) {
				v.writes++
				acked = append(acked, o.End)
				if o.Host != j.hit {
					others = append(others, o.End)
				}
			}
		case refused:
			v.refused++
		default:
			v.unknown++
		}
	}
	v.gap, v.gapAt = longest(append(acked, last))
	v.others, _ = longest(append(others, last))
	for _, key := range slices.Sorted(func(yield func(string) bool) {
		for k := range keys {
			if !yield(k) {
				return
			}
		}
	}) {
		v.keys++
		switch of := keys[key]; key[0] {
		case 'r':
			v.order(key, registerModel(), registers(of, j.linearReads), j)
		case 'c', 't':
			v.order(key, counterModel(), v.counters(of, j.linearReads), j)
		case 's':
			v.sets(key, of, j)
		case 'l':
			v.lists(key, of)
		}
	}
	return v
}

// longest is the longest time between two of these, and when it began.
func longest(at []time.Duration) (gap, from time.Duration) {
	slices.Sort(at)
	for i := 1; i < len(at); i++ {
		if at[i]-at[i-1] > gap {
			gap, from = at[i]-at[i-1], at[i-1]
		}
	}
	return gap, from
}

func writes(kind string) bool {
	return !slices.Contains([]string{"get", "smembers", "lrange", "counts"}, kind)
}

// order asks whether the operations of a key fit any order that respects their times.
func (v *verdict) order(key string, m porcupine.Model, ops []porcupine.Operation, j judging) {
	res, info := porcupine.CheckOperationsVerbose(m, ops, keyTime)
	switch res {
	case porcupine.Unknown:
		v.undecided++
	case porcupine.Illegal:
		v.unordered = append(v.unordered, key)
		if j.dir != "" {
			_ = porcupine.VisualizePath(m, info, filepath.Join(j.dir, strings.ReplaceAll(key, ":", "-")+".html"))
		}
	}
}

// input is one operation for a model; output what came back, if anything did.
type input struct {
	write bool
	read  bool // the reply tells the value before a write, or the value read
	value string
}

type output struct {
	known bool
	value string
}

func timed(o op, in input, out output) porcupine.Operation {
	end := int64(o.End)
	if o.Outcome == unknown {
		end = math.MaxInt64 // it may happen at any later time
	}
	return porcupine.Operation{ClientId: o.Client, Input: in, Output: out, Call: int64(o.Start), Return: end}
}

// judged: a read counts where its freshness is promised, or at the end when nothing moves any more.
func judged(o op, linear bool) bool { return o.Outcome == ok && (linear || o.Final) }

// registers turns operations into those of a register. An unanswered write that nobody saw proves nothing and is left out.
func registers(ops []op, linear bool) []porcupine.Operation {
	seen := map[string]bool{}
	for _, o := range ops {
		if o.Outcome == ok && (o.Kind == "setget" || o.Kind == "get" && judged(o, linear)) {
			seen[o.Out] = true
		}
	}
	var out []porcupine.Operation
	for _, o := range ops {
		switch {
		case o.Outcome == refused:
		case o.Kind == "get":
			if judged(o, linear) {
				out = append(out, timed(o, input{read: true}, output{true, o.Out}))
			}
		case o.Outcome == ok:
			out = append(out, timed(o, input{write: true, read: o.Kind == "setget", value: o.Arg}, output{o.Kind == "setget", o.Out}))
		case seen[o.Arg]:
			out = append(out, timed(o, input{write: true, value: o.Arg}, output{}))
		}
	}
	return out
}

func registerModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, in, out any) (bool, any) {
			i, o := in.(input), out.(output)
			if o.known && i.read && o.value != state.(string) {
				return false, state
			}
			if i.write {
				return true, i.value
			}
			return true, state
		},
		DescribeOperation: func(in, out any) string {
			i, o := in.(input), out.(output)
			if !i.write {
				return "GET: " + o.value
			}
			return fmt.Sprintf("SET %s, before: %s", i.value, o.value)
		},
	}
}

// counters turns operations into those of a counter; pairs must be equal wherever they are seen.
func (v *verdict) counters(ops []op, linear bool) []porcupine.Operation {
	var out []porcupine.Operation
	for _, o := range ops {
		value := o.Out
		if o.Outcome == ok && (o.Kind == "multi" || o.Kind == "counts") && !o.Nil {
			a, b, _ := strings.Cut(o.Out, " ")
			if a != b {
				v.fatal = append(v.fatal, fmt.Sprintf("transaction torn: %s shows %s", o.Key, o.Out))
			}
			value = a
		}
		switch {
		case o.Outcome == refused:
		case o.Kind == "incr" || o.Kind == "multi":
			out = append(out, timed(o, input{write: true}, output{o.Outcome == ok, value}))
		case judged(o, linear):
			if o.Nil {
				value = "0"
			}
			out = append(out, timed(o, input{read: true}, output{true, value}))
		}
	}
	return out
}

func counterModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return 0 },
		Step: func(state, in, out any) (bool, any) {
			i, o := in.(input), out.(output)
			n := state.(int)
			if i.write {
				n++
			}
			return !o.known || o.value == strconv.Itoa(n), n
		},
		DescribeOperation: func(in, out any) string {
			if in.(input).write {
				return "INCR: " + out.(output).value
			}
			return "GET: " + out.(output).value
		},
	}
}
