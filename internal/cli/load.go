// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/mover"
	"redoubt/internal/reshard"
	"redoubt/internal/topk"
)

type loadFlags struct {
	span  time.Duration
	top   int
	watch bool
	scan  bool
	keys  float64
	most  int64
}

func (f *loadFlags) add(c *cobra.Command) {
	c.Flags().DurationVar(&f.span, "for", 3*time.Second, "how long to measure, at most a minute")
	c.Flags().IntVar(&f.top, "top", 20, "how many to show")
}

func (f *loadFlags) check() error {
	if f.span <= 0 || f.span > time.Minute || f.top < 1 || f.keys < 0 || f.most < 1 {
		return fail(ExitUsage, "--for is at most 1m, --top and --most are at least 1, and --keys-per-second is not negative")
	}
	return nil
}

func (e *env) hotkeys() *cobra.Command {
	f := loadFlags{most: 1}
	c := e.reads(&cobra.Command{
		Use: "hotkeys", Short: "Which keys, slots and shards clients use most",
		Long: "Measure for some seconds which keys clients use most, as the members' proxies see it: nothing is asked of the servers. Each member looks at so\n" +
			"many commands a second as cost it little, so that counts are estimates; of a key that is shown at least that much was seen.\n" +
			"What goes past the proxies is not seen. Where the deployment has a password it is taken from REDISCLI_AUTH.\n\n" + exitCodes,
	})
	f.add(c)
	c.Flags().BoolVar(&f.watch, "watch", false, "measure and show again and again")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return e.measure(c.Context(), f, func(r api.LoadReport) { e.printHot(r, f.top) })
	}
	return c
}

func (e *env) bigkeys() *cobra.Command {
	var f loadFlags
	c := e.reads(&cobra.Command{
		Use: "bigkeys", Short: "Which keys have the largest values",
		Long: "Show the keys of which the largest commands and replies passed in some seconds, as the members' proxies see it. With --scan, go through the keys of\n" +
			"a replica of each shard instead, and ask how much memory each takes: slowly, so that the replica goes on with what it does.\n" +
			"Where the deployment has a password it is taken from REDISCLI_AUTH.\n\n" + exitCodes,
	})
	f.add(c)
	c.Flags().BoolVar(&f.watch, "watch", false, "measure and show again and again")
	c.Flags().BoolVar(&f.scan, "scan", false, "weigh the keys on a replica of each shard")
	c.Flags().Float64Var(&f.keys, "keys-per-second", 20_000, "with --scan: no faster than that, on each shard (0: no bound)")
	c.Flags().Int64Var(&f.most, "most", 10_000_000, "with --scan: no more keys than that, on each shard")
	c.MarkFlagsMutuallyExclusive("watch", "scan")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if f.scan {
			return e.weigh(c.Context(), f)
		}
		return e.measure(c.Context(), f, func(r api.LoadReport) { e.printBig(r, f.top) })
	}
	return c
}

// measure asks the members once, or again and again, and shows what they say.
func (e *env) measure(ctx context.Context, f loadFlags, show func(api.LoadReport)) error {
	if err := f.check(); err != nil {
		return err
	}
	client, err := e.client()
	if err != nil {
		return err
	}
	defer client.Close()
	for first := true; first || f.watch; first = false {
		rep, err := client.Load(ctx, f.span, os.Getenv(passwordVariable))
		if err != nil {
			return err
		}
		if e.json {
			if err := printJSON(e.out, rep); err != nil {
				return err
			}
		} else {
			if f.watch && isTerminal(e.out) {
				fmt.Fprint(e.out, "\x1b[H\x1b[2J")
			}
			show(rep)
		}
		for _, m := range rep.Missing {
			fmt.Fprintf(e.err, "note: not measured at %s\n", m)
		}
	}
	return nil
}

// rate is how many a second.
func rate(n, ms int64) string {
	v := float64(n) * 1000 / float64(max(ms, 1))
	if v < 10 {
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return count(int64(v))
}

func share(n, of int64) string {
	if of == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(n)/float64(of))
}

type hotKey struct {
	topk.Count
	shard string
	ms    int64
}

// printHot shows shards, keys and slots.
func (e *env) printHot(r api.LoadReport, top int) {
	on := coloured(e.out)
	total := int64(0)
	rows := [][]cell{{{text: "SHARD"}, {text: "COMMANDS/S"}, {text: "READS/S"}, {text: "WRITES/S"}, {text: "BYTES/S"}}}
	var keys []hotKey
	var slots topk.Load
	for _, s := range r.Shards {
		rows = append(rows, []cell{{text: s.Shard}, {text: rate(s.Commands, s.MS)}, {text: rate(s.Reads, s.MS)}, {text: rate(s.Writes, s.MS)}, {text: rate(s.Bytes, s.MS)}})
		total += s.Commands
		for _, c := range s.Hot {
			keys = append(keys, hotKey{c, s.Shard, s.MS})
		}
		slots = topk.Join(slots, s.Load)
	}
	table(e.out, on, rows)
	slices.SortFunc(keys, func(a, b hotKey) int { return cmp.Compare(b.Hits-b.Over, a.Hits-a.Over) })
	rows = [][]cell{{{text: "KEY"}, {text: "SHARD"}, {text: "COMMANDS/S"}, {text: "SHARE"}, {text: "READS/S"}, {text: "WRITES/S"}, {text: "BYTES/S"}}}
	for _, k := range keys[:min(top, len(keys))] {
		n := k.Hits - k.Over
		rows = append(rows, []cell{{text: brief(k.Key)}, {text: k.shard}, {text: rate(n, k.ms)}, {text: share(n, total)}, {text: rate(k.Reads, k.ms)}, {text: rate(k.Writes, k.ms)}, {text: rate(k.Bytes, k.ms)}})
	}
	fmt.Fprintln(e.out)
	table(e.out, on, rows)
	if len(slots.Slots) > 0 {
		fmt.Fprintln(e.out)
		e.printSlots(slots, total, min(top, 10))
	}
}

// printSlots shows a cluster's most used slots.
func (e *env) printSlots(l topk.Load, total int64, top int) {
	order := make([]int, 0, len(l.Slots))
	for slot, n := range l.Slots {
		if n > 0 {
			order = append(order, slot)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(l.Slots[b], l.Slots[a]) })
	rows := [][]cell{{{text: "SLOT"}, {text: "COMMANDS/S"}, {text: "SHARE"}}}
	for _, slot := range order[:min(top, len(order))] {
		rows = append(rows, []cell{{text: strconv.Itoa(slot)}, {text: rate(l.Slots[slot], l.MS)}, {text: share(l.Slots[slot], total)}})
	}
	table(e.out, coloured(e.out), rows)
}

func (e *env) printBig(r api.LoadReport, top int) {
	var all []sized
	for _, s := range r.Shards {
		for _, z := range s.Big {
			all = append(all, sized{z, s.Shard})
		}
	}
	if len(all) == 0 {
		fmt.Fprintln(e.out, "no command or reply of more than 4 KiB passed")
		return
	}
	e.printSized(all, top, "WITH")
}

type sized struct {
	topk.Size
	shard string
}

func (e *env) printSized(all []sized, top int, what string) {
	slices.SortStableFunc(all, func(a, b sized) int { return cmp.Compare(b.Bytes, a.Bytes) })
	rows := [][]cell{{{text: "KEY"}, {text: "SHARD"}, {text: "BYTES"}, {text: what}}}
	for _, z := range all[:min(top, len(all))] {
		rows = append(rows, []cell{{text: brief(z.Key)}, {text: z.shard}, {text: count(z.Bytes)}, {text: z.What}})
	}
	table(e.out, coloured(e.out), rows)
}

// weigh goes through the keys of a replica of each shard.
func (e *env) weigh(ctx context.Context, f loadFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	client, err := e.client()
	if err != nil {
		return err
	}
	defer client.Close()
	st, err := client.Status(ctx)
	if err != nil {
		return err
	}
	var all []sized
	surveys := map[string]mover.Survey{}
	for _, d := range st.Deployments {
		for _, sh := range d.Shards {
			if e.shard != "" && sh.ID != e.shard {
				continue
			}
			s, err := e.weighShard(ctx, f, sh)
			if err != nil {
				return fail(ExitFailed, "shard %s: %w", sh.ID, err)
			}
			surveys[sh.ID] = s
			fmt.Fprintf(e.err, "shard %s: %s of %s keys weighed at %s, %s in all\n", sh.ID, count(s.Keys), count(s.Total), s.Addr, size(s.Bytes))
			for _, z := range s.Big {
				all = append(all, sized{z, sh.ID})
			}
		}
	}
	if len(surveys) == 0 {
		return fail(ExitFailed, "there is no shard %q", e.shard)
	}
	if e.json {
		return printJSON(e.out, surveys)
	}
	e.printSized(all, f.top, "TYPE")
	return nil
}

// weighShard asks a replica, and the next one if it cannot tell (in a cluster, one that just began may not know the slots yet). The
// primary is asked last.
func (e *env) weighShard(ctx context.Context, f loadFlags, sh api.ShardStatus) (s mover.Survey, err error) {
	err = errors.New("no server can be asked: see `redoubt status`")
	for _, state := range []string{api.StateFollowing, api.StateServing} {
		for _, n := range sh.Nodes {
			if n.State != state {
				continue
			}
			if state == api.StateServing {
				fmt.Fprintf(e.err, "note: shard %s has no replica that can tell: its primary is asked\n", sh.ID)
			}
			at := mover.Endpoint{Addrs: []string{n.Addr}, Password: os.Getenv(passwordVariable)}
			if s, err = mover.Weigh(ctx, at, f.most, reshard.Rate{KeysPerSecond: f.keys}); err == nil || ctx.Err() != nil {
				return s, err
			}
		}
	}
	return s, err
}
