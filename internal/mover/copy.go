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

// weighed is one key on its way: how large it is said to be, then what it is.
type weighed struct {
	key   string
	bytes int64
	ttl   int64  // when it ends, in Unix milliseconds; 0: never
	value []byte // as DUMP gives it; nil: there is no such key any more
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
	return b.copyKeys(ctx, keys, b.o.Rate)
}

// copyDirty copies what was written since the last time.
func (b *batch) copyDirty(ctx context.Context, rate reshard.Rate) error {
	keys, all, err := b.s.stream.take()
	if err != nil {
		return err
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
	return b.copyKeys(ctx, keys, rate)
}

// copyKeys makes the target have what the source has of these keys: first those of ordinary size, read ahead by a goroutine, then the large ones.
func (b *batch) copyKeys(ctx context.Context, keys []string, rate reshard.Rate) error {
	if len(keys) == 0 {
		return nil
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	read := &reader{src: b.s.src, keys: keys, limit: b.o.BigBytes, groups: make(chan []weighed, 2), ended: make(chan struct{})}
	go read.run(both)
	err := b.restoreAll(both, read.groups, rate)
	cancel()
	<-read.ended
	if read.err != nil && (err == nil || ctx.Err() == nil) {
		err = read.err
	}
	if err != nil {
		return err
	}
	for _, w := range read.big {
		b.big[w.key] = w.bytes
		if err := b.copyBig(ctx, w); err != nil {
			return fmt.Errorf("copy the value of %.60q: %w", w.key, err)
		}
	}
	return nil
}

func (b *batch) restoreAll(ctx context.Context, groups <-chan []weighed, rate reshard.Rate) error {
	for {
		var group []weighed
		var more bool
		select {
		case group, more = <-groups:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !more {
			return nil
		}
		began := time.Now()
		bytes, err := b.s.restore(ctx, group)
		if err != nil {
			return err
		}
		b.report.Keys += int64(len(group))
		b.report.Bytes += bytes
		if err := rest(ctx, rate.Rest(int64(len(group)), bytes, time.Since(began))); err != nil {
			return err
		}
	}
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

// restore gives the target one group of keys, and takes from it those that are no more.
func (s *session) restore(ctx context.Context, group []weighed) (bytes int64, err error) {
	for _, w := range group {
		s.tgt.add("ASKING")
		if w.value == nil {
			s.tgt.add("UNLINK", w.key)
			continue
		}
		bytes += int64(len(w.value))
		s.tgt.addRestore(w)
	}
	_, err = s.tgt.must(ctx)
	return bytes, err
}

func (l *link) addRestore(w weighed) {
	l.addValues([]string{"RESTORE", w.key, strconv.FormatInt(w.ttl, 10)}, w.value, []byte("REPLACE"), []byte("ABSTTL"))
}

// reader reads values at the source, ahead of who restores them.
type reader struct {
	src    *link
	keys   []string
	limit  int64 // of what is dumped
	groups chan []weighed
	ended  chan struct{}
	big    []weighed // after ended
	err    error
}

// window is how many keys are weighed at once.
const window = 4 * batchKeys

func (r *reader) run(ctx context.Context) {
	defer close(r.ended)
	defer func() {
		if r.err == nil {
			close(r.groups)
		}
	}()
	var next []weighed
	for len(r.keys) > 0 || len(next) > 0 {
		var group []weighed
		group, next = cut(next)
		if len(next) < batchKeys && len(r.keys) > 0 {
			n := min(window, len(r.keys))
			ahead, err := r.round(ctx, group, r.keys[:n])
			if err != nil {
				r.fail(err)
				return
			}
			r.keys = r.keys[n:]
			next = append(next, ahead...)
		} else if _, err := r.round(ctx, group, nil); err != nil {
			r.fail(err)
			return
		}
		if len(group) == 0 {
			continue
		}
		select {
		case r.groups <- group:
		case <-ctx.Done():
			r.fail(ctx.Err())
			return
		}
	}
}

// fail ends reading. Whoever restores is told by the end of the channel, and finds err behind ended.
func (r *reader) fail(err error) {
	r.err = err
	close(r.groups)
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

// round dumps one group, and weighs further keys, in one go. What is large goes to r.big.
func (r *reader) round(ctx context.Context, group []weighed, weigh []string) ([]weighed, error) {
	for _, w := range group {
		r.src.add("DUMP", w.key)
		r.src.add("PEXPIRETIME", w.key)
	}
	for _, k := range weigh {
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
	out := make([]weighed, 0, len(weigh))
	for i, k := range weigh {
		w := weighed{key: k, bytes: reps[2*len(group)+i].num}
		if w.bytes > r.limit {
			r.big = append(r.big, w)
			continue
		}
		out = append(out, w)
	}
	return out, nil
}
