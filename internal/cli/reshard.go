// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/config"
	"redoubt/internal/reshard"
	"redoubt/internal/topo"
)

type reshardFlags struct {
	planOnly bool
	by       string
	weights  []string
	batch    int
	keys     float64
	bytes    string
	stall    time.Duration
	force    bool
	wait     bool
	look     time.Duration
}

func (e *env) reshard() *cobra.Command {
	var f reshardFlags
	c := e.orders(&cobra.Command{
		Use: "reshard", Aliases: []string{"rebalance"}, Short: "Move slots of a cluster, so that each shard has its part",
		Long: "Move slots of a cluster (mode cluster) so that each shard has its part, while clients go on. As few slots move as can. What\n" +
			"is under way is agreed: it is gone on with whatever dies. A shard of weight 0 is emptied.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, _ []string) error { return e.runReshard(c.Context(), f) },
	})
	c.Flags().BoolVar(&f.planOnly, "plan", false, "show what would be moved, and move nothing")
	c.Flags().StringVar(&f.by, "by", "slots", "what is balanced: slots, bytes or ops (operations per second, which the proxies measure)")
	c.Flags().DurationVar(&f.look, "look", 5*time.Second, "how long operations are measured, for --by ops")
	c.Flags().StringArrayVar(&f.weights, "weight", nil, "SHARD=NUMBER: its part, beside those of the others (default: as last time, 1 at first)")
	c.Flags().IntVar(&f.batch, "batch", 0, "most slots that are handed over together (default 32)")
	c.Flags().Float64Var(&f.keys, "throttle", 0, "most keys a second (default: no bound)")
	c.Flags().StringVar(&f.bytes, "throttle-bytes", "", "most bytes a second, like 50mb (default: no bound)")
	c.Flags().DurationVar(&f.stall, "latency", 2*time.Millisecond, "how long one request may keep a server; when they take longer, the server is left alone for as long")
	c.Flags().BoolVar(&f.force, "force", false, "also move what is written all the time, at the price of a longer stop for its clients")
	c.Flags().BoolVar(&f.wait, "wait", true, "wait until it is over")
	order := func(use, short string) *cobra.Command {
		return e.reads(&cobra.Command{
			Use: use, Short: short, Args: usageArgs(cobra.NoArgs),
			RunE: func(c *cobra.Command, _ []string) error {
				return look(e, c, func(client *api.Client, ctx context.Context) (api.ReshardStatus, error) {
					return client.WishReshard(ctx, use)
				}, e.printReshard)
			},
		})
	}
	status := e.reads(&cobra.Command{
		Use: "status", Short: "Show how far moving slots has come", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return look(e, c, (*api.Client).ReshardStatus, e.printReshard)
		},
	})
	c.AddCommand(status, order("pause", "Let what is moving stand still"), order("resume", "Go on"), order("cancel", "End it where it is: what was moved stays where it is now"))
	return c
}

func (f reshardFlags) request() (api.ReshardRequest, error) {
	r := api.ReshardRequest{Weights: map[string]float64{}, Batch: f.batch, KeysPerSecond: f.keys, Stall: topo.Duration(f.stall), Force: f.force, By: whoami()}
	switch f.by {
	case "slots":
		r.Measure = reshard.BySlots
	case "bytes":
		r.Measure = reshard.ByBytes
	case "ops":
		r.Measure, r.Look = reshard.ByOperations, topo.Duration(f.look)
	default:
		return r, fail(ExitUsage, "--by %s: use slots, bytes or ops", f.by)
	}
	for _, w := range f.weights {
		name, value, ok := strings.Cut(w, "=")
		n, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil || n < 0 {
			return r, fail(ExitUsage, "--weight %s: write SHARD=NUMBER, like s3=0", w)
		}
		r.Weights[name] = n
	}
	if f.bytes != "" {
		var b config.Bytes
		if err := b.UnmarshalText([]byte(f.bytes)); err != nil {
			return r, fail(ExitUsage, "--throttle-bytes %s: %w", f.bytes, err)
		}
		r.BytesPerSecond = float64(b)
	}
	return r, nil
}

func (e *env) runReshard(ctx context.Context, f reshardFlags) error {
	r, err := f.request()
	if err != nil {
		return err
	}
	var p api.ReshardPlan
	if f.planOnly {
		client, err := e.client()
		if err != nil {
			return err
		}
		defer client.Close()
		ask, cancel := context.WithTimeout(ctx, askTimeout+r.Look.D())
		defer cancel()
		if p, err = client.PlanReshard(ask, r); err != nil {
			return err
		}
		if e.json {
			return printJSON(e.out, p)
		}
		fmt.Fprint(e.out, p.Text)
		return nil
	}
	return e.propose(ctx, func(_ context.Context, client *api.Client) (string, error) {
		ask, cancel := context.WithTimeout(ctx, askTimeout+r.Look.D())
		defer cancel()
		p, err = client.PlanReshard(ask, r)
		r.Rates = p.Rates // what was shown is carried out
		return strings.TrimSuffix(p.Text, "\n"), err
	}, func(ctx context.Context, client *api.Client) error {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		st, err := client.Reshard(ask, r)
		if err != nil {
			return err
		}
		return e.followReshard(ctx, client, st, f.wait)
	})
}

// followReshard waits until it is over, and says how far it has come.
func (e *env) followReshard(ctx context.Context, client *api.Client, st api.ReshardStatus, wait bool) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	begun, said := st.StartedMS, time.Now()
	for wait && (st.State == api.ReshardRunning || st.State == api.ReshardPaused) && st.StartedMS == begun {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		next, err := client.ReshardStatus(ask)
		cancel()
		if err == nil {
			st = next
		}
		if time.Since(said) > 2*time.Second {
			said = time.Now()
			fmt.Fprintln(e.err, reshardLine(st))
		}
	}
	if e.json {
		if err := printJSON(e.out, st); err != nil {
			return err
		}
	} else {
		e.printReshard(st)
	}
	if st.State == api.ReshardHalted || wait && st.State == api.ReshardCancelled {
		return fail(ExitFailed, "%s: %s", st.State, st.Why)
	}
	return nil
}

// ringLine says how far the change of a ring is.
func ringLine(st api.ReshardStatus) string {
	line := fmt.Sprintf("%s: %s", st.State, st.What)
	if st.State == api.ReshardRunning {
		line += ", " + st.Stage
	}
	line += fmt.Sprintf(", %d keys copied", st.Keys)
	if st.State == api.ReshardRunning && st.OfKeys > 0 {
		line += fmt.Sprintf(" (the shards that give some away have %d)", st.OfKeys)
	}
	if st.Stops > 0 {
		line += fmt.Sprintf(", clients waited for %s", st.Longest.D().Round(10*time.Microsecond))
	}
	if len(st.Without) > 0 {
		line += ", without " + strings.Join(st.Without, ", ")
	}
	if st.Trouble != "" {
		line += " (" + st.Trouble + ")"
	}
	return line
}

func reshardLine(st api.ReshardStatus) string {
	if st.What != "" {
		return ringLine(st)
	}
	line := fmt.Sprintf("%s: %d of %d slots, %d keys", st.State, st.Moved, st.Slots, st.Keys)
	if st.KeysRate > 0 {
		line += fmt.Sprintf(", %.0f keys/s", st.KeysRate)
	}
	if st.Left > 0 {
		line += ", about " + st.Left.D().Round(time.Second).String() + " left"
	}
	if st.Trouble != "" {
		line += " (" + st.Trouble + ")"
	}
	return line
}

func (e *env) printReshard(st api.ReshardStatus) {
	if st.State == api.ReshardNone {
		fmt.Fprintln(e.out, "nothing was ever moved")
		return
	}
	fmt.Fprintln(e.out, reshardLine(st))
	if st.Stops > 0 && st.What == "" {
		fmt.Fprintf(e.out, "%d hand-overs; the clients of one waited for up to %s in half of them, up to %s in 95 %%, and %s at most\n", st.Stops, st.Median, st.P95, st.Longest.D().Round(10*time.Microsecond))
	}
	if st.Now != "" {
		fmt.Fprintln(e.out, "now  "+st.Now)
	}
	if st.Why != "" {
		fmt.Fprintln(e.out, st.Why)
	}
}
