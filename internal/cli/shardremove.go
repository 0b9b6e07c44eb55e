// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
)

func (e *env) shardRemove() *cobra.Command {
	wait := true
	c := e.orders(&cobra.Command{
		Use: "remove NAME", Short: "Empty a shard, and remove it", Args: usageArgs(cobra.ExactArgs(1)),
		Long: "Move everything that a shard has to the others, and remove it then: its servers are stopped, and their directories put away\n" +
			"beside where they were. `redoubt reshard status`, `pause` and `resume` are about it while it is emptied; `redoubt reshard cancel`\nkeeps the shard, with what it still has.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, args []string) error { return e.removeShard(c.Context(), args[0], wait) },
	})
	c.Flags().BoolVar(&wait, "wait", wait, "wait until it is gone")
	return c
}

func (e *env) removeShard(ctx context.Context, name string, wait bool) error {
	return e.propose(ctx, func(ctx context.Context, client *api.Client) (string, error) {
		p, err := client.PlanReshard(ctx, api.ReshardRequest{Weights: map[string]float64{name: 0}})
		return fmt.Sprintf("Remove shard %s: it is emptied, and its servers are stopped.\n%s", name, strings.TrimSuffix(p.Text, "\n")), err
	}, func(ctx context.Context, client *api.Client) error {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if err := client.RemoveShard(ask, name, whoami()); err != nil {
			return err
		}
		if !wait {
			fmt.Fprintf(e.out, "shard %s is to be removed: redoubt reshard status\n", name)
			return nil
		}
		return e.awaitRemoval(ctx, client, name)
	})
}

// awaitRemoval waits until a shard is gone, and says how far it has come.
func (e *env) awaitRemoval(ctx context.Context, client *api.Client, name string) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	begun, said := time.Now(), time.Now()
	for {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		st, err := client.ReshardStatus(ask)
		all, serr := client.Status(ask)
		cancel()
		if err == nil && serr == nil {
			mine := func(id string) bool { return id == name || strings.HasSuffix(id, "-"+name) }
			there := slices.ContainsFunc(all.Deployments[0].Shards, func(s api.ShardStatus) bool { return mine(s.ID) })
			leaves := slices.ContainsFunc(st.Leaving, mine)
			switch {
			case !there:
				what := fmt.Sprintf("%d slots, %d keys", st.Moved, st.Keys)
				if st.What != "" { // a ring
					what = fmt.Sprintf("%d keys", st.Keys)
				}
				fmt.Fprintf(e.out, "shard %s is removed: %s went to the others (%d ms)\n", name, what, time.Since(begun).Milliseconds())
				return nil
			case !leaves && st.State == api.ReshardCancelled:
				return fail(ExitFailed, "shard %s stays: moving its slots was cancelled", name)
			case time.Since(said) > 2*time.Second:
				said = time.Now()
				fmt.Fprintln(e.err, reshardLine(st))
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
