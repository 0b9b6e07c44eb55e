// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/mover"
	"redoubt/internal/reshard"
	"redoubt/internal/route"
)

type migrateFlags struct {
	from, to  string
	pool      string
	sentinel  string
	overwrite bool
	cutOver   bool
	scan      bool
	after     string
	pause     time.Duration
	verify    string
	keys      float64
	mbytes    float64
}

const migrateLong = `Carry everything that a Redis has into a running deployment, while clients write: a server, what Sentinels watch, a cluster, or a pool of
twemproxy. The target is reached through a proxy of the deployment, which puts every key where it belongs.

  --from redis://[user:password@]host:port[/database]      a server (rediss: by TLS), or any node of a cluster
  --from sentinel://[user:password@]host:port[,…]/name     the server that these Sentinels call the primary
  --from nutcracker.yml                                    the servers of a pool
  --to   host:port[,…] | redis://… | a directory of "redoubt up"

Keys are copied as they are, with their times to live; the source's replication stream tells which were written meanwhile, and they are copied
again. Nothing of the source is changed, and no copy of its data is asked for, until the cut-over: then its writers wait for some milliseconds, the last
keys are copied, and the source refuses writes from then on. It comes by itself with --cut-over, else by
"redoubt migrate cut-over --to …". Interrupted, it leaves the source as it is; run again, it goes on where it was.

Passwords may stand in REDOUBT_SOURCE_PASSWORD and REDOUBT_TARGET_PASSWORD.

` + exitCodes

func (e *env) migrate() *cobra.Command {
	var f migrateFlags
	c := &cobra.Command{
		Use: "migrate --from SOURCE --to TARGET", Short: "Move a Redis that exists into a deployment, live", Long: migrateLong,
		RunE: func(c *cobra.Command, _ []string) error { return e.runMigrate(c.Context(), f) },
	}
	c.Flags().StringVar(&f.from, "from", "", "where the keys come from")
	c.Flags().StringVar(&f.to, "to", "", "where they go")
	c.Flags().StringVar(&f.pool, "pool", "", "which pool of a nutcracker.yml (needed when there are several)")
	c.Flags().StringVar(&f.sentinel, "sentinel-password", "", "password of the Sentinels")
	c.Flags().BoolVar(&f.overwrite, "overwrite", false, "the target may have data: it becomes what the source is, and what the source has not is removed")
	c.Flags().BoolVar(&f.cutOver, "cut-over", false, "cut over as soon as the target is in step")
	c.Flags().BoolVar(&f.scan, "scan", false, "a source whose stream cannot be followed is copied once more while its writers wait (needs a long --pause)")
	c.Flags().StringVar(&f.after, "source-after", "readonly", "the source behind the cut-over: readonly, or leave")
	c.Flags().DurationVar(&f.pause, "pause", 5*time.Second, "how long writers may wait in the cut-over, at most")
	c.Flags().StringVar(&f.verify, "verify", "sample", "compare before the cut-over: none, sample (10,000 keys), or all")
	c.Flags().Float64Var(&f.keys, "keys-per-second", 0, "copy no faster (0: no bound)")
	c.Flags().Float64Var(&f.mbytes, "mbytes-per-second", 0, "copy no faster (0: no bound)")
	c.Flags().BoolVarP(&e.yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&e.json, "json", false, "the outcome in JSON")
	c.AddCommand(e.migrateCutOver())
	return c
}

func (e *env) migrateCutOver() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use: "cut-over --to TARGET", Short: "Have a migration that is under way cut over", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			at, err := target(to)
			if err != nil {
				return err
			}
			if err := mover.OrderCutOver(c.Context(), at); err != nil {
				return fail(ExitFailed, "%w", err)
			}
			fmt.Fprintln(e.out, "the order is given: the process that migrates cuts over when the target is in step")
			return nil
		},
	}
	c.Flags().StringVar(&to, "to", "", "where the keys go, as for migrate")
	return c
}

const verifySample = 10_000

func (f migrateFlags) options() (o mover.WholeOptions, err error) {
	if o.Source, err = source(f); err != nil {
		return o, err
	}
	if o.Target, err = target(f.to); err != nil {
		return o, err
	}
	switch o.After = mover.After(f.after); o.After {
	case mover.ReadOnly, mover.Leave:
	default:
		return o, fail(ExitUsage, "--source-after %s: use readonly or leave", f.after)
	}
	verify := map[string]int{"none": 0, "sample": verifySample, "all": -1}
	n, ok := verify[f.verify]
	if !ok {
		return o, fail(ExitUsage, "--verify %s: use %s", f.verify, strings.Join(slices.Sorted(maps.Keys(verify)), ", "))
	}
	if f.keys < 0 || f.mbytes < 0 || f.pause <= 0 {
		return o, fail(ExitUsage, "--keys-per-second, --mbytes-per-second and --pause are not negative")
	}
	o.Verify, o.Overwrite, o.CutOver, o.Blind, o.Pause = n, f.overwrite, f.cutOver, f.scan, f.pause
	o.Rate = reshard.Rate{KeysPerSecond: f.keys, BytesPerSecond: f.mbytes * 1e6}
	o.Keys = keysOf
	return o, nil
}

// keysOf tells where commands have their keys, as the server describes them.
func keysOf(command []byte) func([][]byte, []int) ([]int, bool) {
	table, ok := route.FromCommand(command)
	if !ok {
		table = route.Builtin()
	}
	return func(args [][]byte, dst []int) ([]int, bool) {
		row := table.Lookup(args[0])
		return row.Keys(args, dst), row.Name != ""
	}
}

func (e *env) runMigrate(ctx context.Context, f migrateFlags) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	show := &migrateShow{env: e, began: time.Now(), live: isTerminal(e.err)}
	o.Told, o.Note = show.told, show.note
	w := mover.NewWhole(o)
	p, err := w.Check(ctx)
	if err != nil {
		return migrateError(ctx, err)
	}
	if err := e.confirm(planText(p, o)); err != nil {
		return err
	}
	if e.yes {
		fmt.Fprintln(e.err, planText(p, o))
	}
	out, err := mover.NewWhole(o).Run(ctx)
	show.end()
	if err != nil {
		if ctx.Err() != nil {
			fmt.Fprintln(e.err, "stopped: the source is as it was, and the target has what was copied; the same command goes on from there")
		}
		return migrateError(ctx, err)
	}
	if e.json {
		return printJSON(e.out, outcomeJSON(out))
	}
	e.printOutcome(out, o)
	return nil
}

func migrateError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fail(ExitUsage, "%w", err)
	}
	return fail(ExitFailed, "%w", err)
}

// planText is what will be done.
func planText(p mover.Plan, o mover.WholeOptions) string {
	var b strings.Builder
	keys := int64(0)
	for _, s := range p.Servers {
		fmt.Fprintf(&b, "from %s, %s, %s in memory, %d replicas:", s.Addr, s.Version, size(s.Bytes), s.Replicas)
		for _, db := range slices.Sorted(maps.Keys(s.Keys)) {
			fmt.Fprintf(&b, " %s keys in database %d;", count(s.Keys[db]), db)
			keys += s.Keys[db]
		}
		b.WriteString("\n")
	}
	kind := "one shard or server"
	if p.Shards {
		kind = "several shards"
	}
	fmt.Fprintf(&b, "to   %s, %s, %s, %s keys\n", p.Target, p.Version, kind, count(p.Has))
	switch {
	case p.Goes:
		b.WriteString("an earlier migration from there has begun: this one goes on with it\n")
	case o.Overwrite:
		b.WriteString("what the target has and the source has not is removed\n")
	}
	when := "by order (redoubt migrate cut-over)"
	if o.CutOver {
		when = "as soon as the target is in step"
	}
	after := "the source refuses writes afterwards (min-replicas-to-write)"
	if o.After == mover.Leave {
		after = "the source takes writes again afterwards, which nobody carries on"
	}
	fmt.Fprintf(&b, "cut-over %s; writers wait for %s at most, and %s", when, o.Pause, after)
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "\nnote: %s", n)
	}
	return b.String()
}

func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", (n+1023)>>10)
}

func (e *env) printOutcome(out mover.Outcome, o mover.WholeOptions) {
	fmt.Fprintf(e.out, "migrated: %s keys copied, %s, in %s\n", count(out.Keys), size(out.Bytes), out.Took.Round(time.Millisecond))
	if v := out.Verified; v.Keys > 0 {
		fmt.Fprintf(e.out, "compared: %s keys, all the same on both sides", count(v.Keys))
		if v.Later > 0 {
			fmt.Fprintf(e.out, "; %s of them compared again, because they were written meanwhile", count(v.Later))
		}
		if v.Busy > 0 {
			fmt.Fprintf(e.out, "; %s were written too often to be compared", count(v.Busy))
		}
		fmt.Fprintln(e.out)
	}
	fmt.Fprintf(e.out, "cut-over: writers waited for %.1f ms; %s keys were copied in it\n", float64(out.CutOver.Microseconds())/1000, count(out.LastKeys))
	for _, s := range out.Sources {
		fmt.Fprintf(e.out, "source %s: nothing was written behind it\n", s)
	}
	if o.After == mover.ReadOnly && len(out.Reopen) > 0 {
		fmt.Fprintf(e.out, "the source refuses writes; to have it take them again:\n")
		for _, s := range out.Reopen {
			fmt.Fprintln(e.out, "  "+s)
		}
	}
}

func outcomeJSON(out mover.Outcome) any {
	return map[string]any{
		"keys": out.Keys, "bytes": out.Bytes, "ms": out.Took.Milliseconds(), "cut_over_us": out.CutOver.Microseconds(), "last_keys": out.LastKeys,
		"sources": out.Sources, "reopen": out.Reopen, "compared": out.Verified.Keys, "compared_again": out.Verified.Later, "not_compared": out.Verified.Busy,
		"acknowledging_replicas": out.Acked,
	}
}

// migrateShow prints progress: one line that changes on a terminal, else one every few seconds. It is safe for concurrent use.
type migrateShow struct {
	*env
	mu    sync.Mutex
	began time.Time
	live  bool
	last  mover.Progress
	at    time.Time
	shown time.Time
	wrote bool
}

const showEvery = 5 * time.Second

func (s *migrateShow) told(p mover.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	perSecond := 0.0
	if !s.at.IsZero() {
		perSecond = float64(p.Keys-s.last.Keys) / now.Sub(s.at).Seconds()
	}
	changed := p.Phase != s.last.Phase
	s.last, s.at = p, now
	if !s.live && !changed && now.Sub(s.shown) < showEvery {
		return
	}
	s.shown = now
	line := fmt.Sprintf("%s: %s keys copied, %s, %s keys/s", p.Phase, count(p.Keys), size(p.Bytes), count(int64(perSecond)))
	if p.Phase == "copy" {
		line += fmt.Sprintf(" of about %s keys", count(p.Total))
		if left := p.Total - p.Keys; left > 0 && perSecond > 1 {
			line += fmt.Sprintf(", %s to go", (time.Duration(float64(left)/perSecond) * time.Second).Round(time.Second))
		}
	} else {
		line += fmt.Sprintf("; behind by %s of the stream and %s keys", size(p.Lag), count(p.Dirty))
	}
	if p.Again > 0 {
		line += fmt.Sprintf("; begun anew %d times, because everything may have been written at once", p.Again)
	}
	if s.live {
		s.wrote = true
		fmt.Fprintf(s.err, "\r\x1b[K%s", line)
		return
	}
	fmt.Fprintln(s.err, line)
}

func (s *migrateShow) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newLine()
	fmt.Fprintf(s.err, "note: %s\n", text)
}

// end is called when nothing more is told.
func (s *migrateShow) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newLine()
}

// newLine finishes the line that changes.
func (s *migrateShow) newLine() {
	if s.wrote {
		fmt.Fprintln(s.err)
		s.wrote = false
	}
}
