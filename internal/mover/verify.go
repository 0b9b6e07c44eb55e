// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"redoubt/internal/reshard"
)

// Verified is what a comparison of both sides came to.
type Verified struct {
	Keys  int64 // that were compared
	Later int64 // compared again, because they were written meanwhile
	Busy  int64 // written so often that no comparison meant anything
}

// ErrDiffer: source and target are not the same.
var ErrDiffer = errors.New("source and target differ")

const (
	verifyPage   = 200
	doubtsMax    = 100_000
	seenMax      = 1 << 20 // elements of a value that are remembered, because a scan may give them twice
	doubtRounds  = 5
	busyMax      = 1000            // keys that are compared while writers wait
	footer       = 10              // bytes at the end of a dump: version and checksum
	endTolerance = 2 * time.Second // of ends of life, where the source tells only how far away they are
)

// verify compares keys of both sides while the target is kept in step.
func (w *Whole) verify(ctx context.Context) error {
	w.phase.Store("verify")
	var mu sync.Mutex
	var sum Verified
	err := w.each(ctx, func(ctx context.Context, g *leg) error {
		if g.stream == nil {
			w.o.Note(fmt.Sprintf("%s: its writes cannot be followed, so that nothing can be compared while there are any", g.from.addr))
			return nil
		}
		v := &verifier{leg: g, began: time.Now()}
		err := v.run(ctx)
		mu.Lock()
		defer mu.Unlock()
		sum.Keys, sum.Later, sum.Busy = sum.Keys+v.Keys, sum.Later+v.Later, sum.Busy+int64(max(0, len(g.busy)-busyMax))
		return err
	})
	w.verified = sum
	return err
}

// verifier compares one origin's keys. What differs is compared again when everything that was written until then has been copied.
type verifier struct {
	*leg
	Verified
	doubts []name
	began  time.Time
}

func (v *verifier) run(ctx context.Context) error {
	var err error
	if v.o.Verify < 0 {
		err = v.all(ctx)
	} else {
		err = v.sample(ctx)
	}
	if err != nil {
		return err
	}
	v.Later = int64(len(v.doubts))
	return v.settle(ctx)
}

// all goes through the source, and then through the target for what the source has not.
func (v *verifier) all(ctx context.Context) error {
	dbs, err := v.databases(ctx)
	if err != nil {
		return err
	}
	for _, db := range dbs {
		for _, side := range []*link{v.src, v.look} {
			at := db
			if side == v.look {
				at = v.c.place(db)
			}
			for cursor := "0"; ; {
				keys, next, err := scanPage(ctx, side, at, cursor)
				if err != nil {
					return err
				}
				keys = slices.DeleteFunc(keys, func(k string) bool { return !v.mine(k) })
				if side == v.look {
					if keys, err = v.missing(ctx, db, keys); err != nil {
						return err
					}
				}
				if err := v.page(ctx, db, keys); err != nil {
					return err
				}
				if cursor = next; next == "0" {
					break
				}
			}
		}
	}
	return nil
}

// sample takes keys at random.
func (v *verifier) sample(ctx context.Context) error {
	dbs, err := v.databases(ctx)
	if err != nil {
		return err
	}
	for _, db := range dbs {
		for left := v.o.Verify; left > 0; left -= verifyPage {
			if err := v.src.use(ctx, db); err != nil {
				return err
			}
			for range min(left, verifyPage) {
				v.src.add("RANDOMKEY")
			}
			reps, err := v.src.must(ctx)
			if err != nil {
				return err
			}
			var keys []string
			for _, r := range reps {
				if !r.null && v.mine(string(r.body)) {
					keys = append(keys, string(r.body))
				}
			}
			slices.Sort(keys)
			if err := v.page(ctx, db, slices.Compact(keys)); err != nil {
				return err
			}
		}
	}
	return nil
}

// page compares some keys, and keeps the target in step meanwhile.
func (v *verifier) page(ctx context.Context, db int, keys []string) error {
	for len(keys) > 0 {
		n := min(len(keys), verifyPage)
		differ, err := v.compare(ctx, db, keys[:n])
		if err != nil {
			return err
		}
		v.Keys += int64(n)
		v.doubts = append(v.doubts, differ...)
		if len(v.doubts) > doubtsMax {
			return fmt.Errorf("%w: more than %d keys of %d, for example %.60q", ErrDiffer, doubtsMax, v.Keys, v.doubts[0].key)
		}
		keys = keys[n:]
	}
	if time.Since(v.began) > time.Second {
		v.began = time.Now()
		return v.catchUp(ctx, v.o.Rate)
	}
	return nil
}

// settle compares again what differed, until it is the same, or differs although nobody has written it. What is written all the time is left
// for the cut-over.
func (v *verifier) settle(ctx context.Context) error {
	for range doubtRounds {
		if len(v.doubts) == 0 {
			return nil
		}
		if err := v.reach(ctx); err != nil {
			return err
		}
		differ, err := v.compareNames(ctx, v.doubts)
		if err != nil {
			return err
		}
		end, err := offsetOf(ctx, v.src)
		if err != nil {
			return err
		}
		if err := v.stream.readTo(ctx, end); err != nil {
			return err
		}
		for _, n := range differ {
			if !v.stream.written(n) {
				return fmt.Errorf("%w: %q in database %d, and nobody has written it since it was copied", ErrDiffer, n.key, n.db)
			}
		}
		v.doubts = differ
	}
	v.busy = v.doubts
	return nil
}

func (v *verifier) compareNames(ctx context.Context, names []name) (differ []name, err error) {
	byDB := map[int][]string{}
	for _, n := range names {
		byDB[n.db] = append(byDB[n.db], n.key)
	}
	for db, keys := range byDB {
		d, err := v.compare(ctx, db, keys)
		if err != nil {
			return nil, err
		}
		differ = append(differ, d...)
	}
	return differ, nil
}

// last compares, when nobody writes any more, what was written too often before.
func (g *leg) last(ctx context.Context) error {
	keys := g.busy[:min(len(g.busy), busyMax)]
	differ, err := (&verifier{leg: g}).compareNames(ctx, keys)
	if err == nil && len(differ) > 0 {
		err = fmt.Errorf("%w: %q in database %d and %d others, when nobody wrote any more", ErrDiffer, differ[0].key, differ[0].db, len(differ)-1)
	}
	return err
}

// reach copies everything that was written until now.
func (v *verifier) reach(ctx context.Context) error {
	end, err := offsetOf(ctx, v.src)
	if err != nil {
		return err
	}
	if err := v.stream.readTo(ctx, end); err != nil {
		return err
	}
	return v.catchUp(ctx, reshard.Rate{})
}

// compare returns the keys that are not the same on both sides.
func (v *verifier) compare(ctx context.Context, db int, keys []string) (differ []name, err error) {
	if err := v.src.use(ctx, db); err != nil {
		return nil, err
	}
	if err := v.look.use(ctx, v.c.place(db)); err != nil {
		return nil, err
	}
	for _, k := range keys {
		v.src.add("MEMORY", "USAGE", k, "SAMPLES", "5")
	}
	sizes, err := v.src.must(ctx)
	if err != nil {
		return nil, err
	}
	var small []string
	bytes := int64(0)
	flush := func() error {
		d, err := v.dumps(ctx, db, small)
		differ, small, bytes = append(differ, d...), small[:0], 0
		return err
	}
	for i, k := range keys {
		if sizes[i].num > v.c.limit {
			same, err := v.digests(ctx, k)
			if err != nil {
				return nil, err
			}
			if !same {
				differ = append(differ, name{db, k})
			}
			continue
		}
		small = append(small, k)
		if bytes += sizes[i].num; bytes > batchBytes {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	return differ, errors.Join(flush())
}

// dumps compares by DUMP, and where that differs by content: the same value can be kept in several ways.
func (v *verifier) dumps(ctx context.Context, db int, keys []string) (differ []name, err error) {
	if len(keys) == 0 {
		return nil, nil
	}
	ask := func(l *link) {
		for _, k := range keys {
			l.add("DUMP", k)
			l.add("PTTL", k)
		}
	}
	ask(v.src)
	ask(v.look)
	if err := v.src.send(ctx); err != nil {
		return nil, err
	}
	theirs, err := v.look.must(ctx)
	if err != nil {
		return nil, err
	}
	ours, err := v.src.receive(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.src.firstError(ours); err != nil {
		return nil, err
	}
	for i, k := range keys {
		a, b := ours[2*i], theirs[2*i]
		same := a.null == b.null && ends(ours[2*i+1].num, theirs[2*i+1].num)
		if same && !a.null && !equalDumps(a.body, b.body) {
			if same = false; v.stream.written(name{db, k}) {
				differ = append(differ, name{db, k}) // it will be compared again anyway
				continue
			}
			if same, err = v.digests(ctx, k); err != nil {
				return nil, err
			}
		}
		if !same {
			differ = append(differ, name{db, k})
		}
	}
	return differ, nil
}

func equalDumps(a, b []byte) bool {
	return len(a) > footer && len(b) > footer && bytes.Equal(a[:len(a)-footer], b[:len(b)-footer])
}

// ends compares times to live that were asked for one after the other.
func ends(a, b int64) bool {
	if a < 0 || b < 0 {
		return a == b
	}
	return max(a-b, b-a) <= endTolerance.Milliseconds()
}

// digests compares the contents of a key.
func (v *verifier) digests(ctx context.Context, key string) (bool, error) {
	a, err := digest(ctx, v.src, key)
	if err != nil {
		return false, err
	}
	b, err := digest(ctx, v.look, key)
	return bytes.Equal(a, b), err
}

// digest is a sum of what a key has, in bounded memory.
func digest(ctx context.Context, l *link, key string) ([]byte, error) {
	rep, err := l.ask(ctx, "TYPE", key)
	if err != nil {
		return nil, err
	}
	d := &digester{l: l, key: key}
	kind := string(rep.body)
	switch kind {
	case "string":
		err = d.ordered(ctx, func(at int64) []string {
			return []string{"GETRANGE", key, strconv.FormatInt(at*batchBytes, 10), strconv.FormatInt((at+1)*batchBytes-1, 10)}
		})
	case "list":
		err = d.ordered(ctx, func(at int64) []string {
			return []string{"LRANGE", key, strconv.FormatInt(at*pieceElements, 10), strconv.FormatInt((at+1)*pieceElements-1, 10)}
		})
	case "hash":
		err = d.scanned(ctx, "HSCAN", 2)
	case "set":
		err = d.scanned(ctx, "SSCAN", 1)
	case "zset":
		err = d.scanned(ctx, "ZSCAN", 2)
	case "stream":
		err = d.entries(ctx)
	case "none":
	default:
		if rep, err = l.ask(ctx, "DUMP", key); err == nil && len(rep.body) > footer {
			d.add(rep.body[:len(rep.body)-footer])
		}
	}
	return append([]byte(kind+" "), d.sum[:]...), err
}

// digester sums up elements: those that have an order with what came before, the others so that the order does not matter.
type digester struct {
	l    *link
	key  string
	sum  [sha256.Size]byte
	seen map[[sha256.Size]byte]struct{} // of what a scan may give twice: digests only
}

func (d *digester) add(part []byte) {
	h := sha256.New()
	h.Write(d.sum[:])
	h.Write(part)
	h.Sum(d.sum[:0])
}

// ordered goes through parts with numbers until one is empty.
func (d *digester) ordered(ctx context.Context, part func(at int64) []string) error {
	for at := int64(0); ; at++ {
		rep, err := d.l.ask(ctx, part(at)...)
		if err != nil || len(rep.body) == 0 && len(rep.items) == 0 {
			return err
		}
		d.add(appendReply(nil, rep))
	}
}

// scanned goes through what has no order. A table that shrinks meanwhile gives elements twice.
func (d *digester) scanned(ctx context.Context, verb string, each int) error {
	d.seen = map[[sha256.Size]byte]struct{}{}
	var sum [4]uint64
	for cursor := "0"; ; {
		rep, err := d.l.ask(ctx, verb, d.key, cursor, "COUNT", strconv.Itoa(pieceElements))
		if err != nil || len(rep.items) != 2 {
			return err
		}
		items := bodies(rep.items[1].items)
		for i := 0; i+each <= len(items); i += each {
			var one []byte
			for _, it := range items[i : i+each] {
				one = binary.AppendUvarint(one, uint64(len(it)))
				one = append(one, it...)
			}
			h := sha256.Sum256(one)
			if _, twice := d.seen[h]; twice {
				continue
			}
			if len(d.seen) < seenMax {
				d.seen[h] = struct{}{}
			}
			for k := range sum {
				sum[k] += binary.BigEndian.Uint64(h[8*k:])
			}
		}
		if cursor = string(rep.items[0].body); cursor == "0" {
			break
		}
	}
	for k := range sum {
		binary.BigEndian.PutUint64(d.sum[8*k:], sum[k])
	}
	return nil
}

// entries goes through a stream, and then through its groups.
func (d *digester) entries(ctx context.Context) error {
	for from := "-"; ; {
		rep, err := d.l.ask(ctx, "XRANGE", d.key, from, "+", "COUNT", strconv.Itoa(pieceElements))
		if err != nil {
			return err
		}
		if len(rep.items) == 0 {
			break
		}
		d.add(appendReply(nil, rep))
		last := rep.items[len(rep.items)-1]
		if len(last.items) == 0 {
			return fmt.Errorf("%s answered XRANGE with an entry without an id", d.l.addr)
		}
		from = after(string(last.items[0].body))
	}
	rep, err := d.l.ask(ctx, "XINFO", "GROUPS", d.key)
	if err != nil {
		return err
	}
	for _, g := range rep.items {
		m := flat(g)
		d.add(fmt.Appendf(nil, "%s %s %d", m["name"].body, m["last-delivered-id"].body, m["pending"].num))
	}
	return nil
}
