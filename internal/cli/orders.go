// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/topo"
)

func (e *env) switchover() *cobra.Command {
	r := api.IntentRequest{Kind: topo.IntentSwitchover}
	var to string
	budget := api.BudgetDefault
	c := e.orders(&cobra.Command{
		Use: "switchover", Short: "Move the primary to another node, losing nothing",
		Long: "Move the primary to another node: clients are held for a moment, the old primary is fenced, the new one has every\nwrite before it is promoted. If that takes longer than the budget, it is abandoned.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, _ []string) error {
			r.To, r.Budget = topo.NodeID(to), topo.Duration(budget)
			return e.order(c.Context(), r)
		},
	})
	c.Flags().StringVar(&to, "to", "", "id of the node that becomes the primary (default: the best)")
	c.Flags().DurationVar(&budget, "budget", budget, "abandon it after this time")
	return c
}

func (e *env) failover() *cobra.Command {
	r := api.IntentRequest{Kind: topo.IntentFailover}
	var to string
	c := e.orders(&cobra.Command{
		Use: "failover", Short: "Treat the primary as lost and elect another one",
		Long: "Treat the primary as lost and elect another one now. With durability quorum this waits for enough witnesses, so\nthat no acknowledged write is lost; --accept-data-loss does without, and the report says so. To move a healthy\nprimary use switchover.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, _ []string) error {
			r.To, r.Budget = topo.NodeID(to), topo.Duration(api.BudgetMax)
			return e.order(c.Context(), r)
		},
	})
	c.Flags().StringVar(&to, "to", "", "id of the node that becomes the primary (default: the best)")
	c.Flags().BoolVar(&r.AcceptDataLoss, "accept-data-loss", false, "elect the best node that can be reached, even if acknowledged writes may be lost")
	return c
}

// propose shows the plan that is made of what there is, asks, and acts.
func (e *env) propose(ctx context.Context, plan func(context.Context, *api.Client) (string, error), act func(context.Context, *api.Client) error) error {
	client, err := e.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said, err := plan(ask, client)
	if err != nil {
		return err
	}
	if err := e.confirm(said); err != nil {
		return err
	}
	return act(ctx, client)
}

// order proposes a change of the primary.
func (e *env) order(ctx context.Context, r api.IntentRequest) error {
	return e.propose(ctx, func(ctx context.Context, client *api.Client) (string, error) {
		st, err := client.Status(ctx)
		if err != nil {
			return "", err
		}
		return planOf(st, r, e.shard)
	}, func(ctx context.Context, client *api.Client) error { return e.submit(ctx, client, r) })
}

// submit hands the order in and waits for its outcome.
func (e *env) submit(ctx context.Context, client *api.Client, r api.IntentRequest) error {
	r.By = whoami()
	submit, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	begun := time.Now()
	in, err := client.Submit(submit, r)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.err, "%s %s is recorded; waiting for its outcome\n", in.Kind, in.ID)
	wait, cancel := context.WithTimeout(ctx, r.Budget.D()+10*time.Second)
	defer cancel()
	out, err := client.Await(wait, in.ID)
	if err != nil {
		var refused *api.Error
		if errors.As(err, &refused) {
			return fail(ExitUnknown, "%w", err)
		}
		return err
	}
	return e.outcome(out, time.Since(begun))
}

func (e *env) outcome(out api.IntentStatus, took time.Duration) error {
	if e.json {
		if err := printJSON(e.out, out); err != nil {
			return err
		}
	}
	if !out.Outcome.OK {
		return fail(ExitFailed, "%s", out.Outcome.Why)
	}
	if !e.json {
		fmt.Fprintf(e.out, "%s is the primary, epoch %d (%s; %d ms)\n", out.Primary, out.Epoch, out.Outcome.Why, took.Milliseconds())
	}
	return nil
}

// planOf says what is about to happen.
func planOf(st api.Status, r api.IntentRequest, shard string) (string, error) {
	if len(st.Deployments) == 0 || len(st.Deployments[0].Shards) == 0 {
		return "", fail(ExitFailed, "nothing has been agreed about the shard yet: see `redoubt status`")
	}
	d := st.Deployments[0]
	i := slices.IndexFunc(d.Shards, func(s api.ShardStatus) bool { return s.ID == shard })
	if i < 0 && (shard != "" || len(d.Shards) > 1) {
		return "", fail(ExitUsage, "name one of the shards with --shard: there are %s", shardIDs(d))
	}
	s := d.Shards[max(i, 0)]
	to := string(r.To)
	if to == "" {
		to = "the best replica"
	}
	plan := fmt.Sprintf("Shard %s of %s is %s; its primary is %s (epoch %d).\n", s.ID, d.Name, s.Phase, orDash(string(s.Primary)), s.Epoch)
	switch {
	case r.Kind == topo.IntentSwitchover:
		return plan + fmt.Sprintf("Switchover: hold clients, fence %s, wait until %s has every write, promote it. Nothing is lost; abandoned after %s.", s.Primary, to, r.Budget), nil
	case r.AcceptDataLoss:
		return plan + fmt.Sprintf("Failover, accepting data loss: fence what can be reached and promote %s, even if nodes that hold acknowledged writes are missing. WRITES MAY BE LOST.", to), nil
	}
	return plan + fmt.Sprintf("Failover: treat %s as lost, fence it, freeze the others and promote %s. Writes in flight end with an unknown outcome.", s.Primary, to), nil
}

func whoami() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

func (e *env) pause() *cobra.Command {
	var reason string
	c := e.orders(&cobra.Command{
		Use: "pause", Short: "Stop automatic failovers",
		Long: "Stop automatic failovers until `redoubt resume`. What is under way is finished, and orders are still obeyed.",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := e.confirm("Pause: while it lasts, nobody replaces a primary that dies."); err != nil {
				return err
			}
			return e.setPause(c.Context(), &topo.Pause{By: whoami(), Reason: reason})
		},
	})
	c.Flags().StringVar(&reason, "reason", "", "why, for those who see the status")
	return c
}

func (e *env) resume() *cobra.Command {
	return e.orders(&cobra.Command{
		Use: "resume", Short: "Let automatic failovers go on",
		RunE: func(c *cobra.Command, _ []string) error { return e.setPause(c.Context(), nil) },
	})
}

func (e *env) setPause(ctx context.Context, p *topo.Pause) error {
	client, err := e.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said := "automatic failovers are paused"
	if p == nil {
		err, said = client.Resume(ctx), "automatic failovers go on"
	} else {
		err = client.Pause(ctx, *p)
	}
	if err != nil {
		return err
	}
	if e.json {
		return printJSON(e.out, map[string]bool{"paused": p != nil})
	}
	fmt.Fprintln(e.out, said)
	return nil
}

func shardIDs(d api.DeploymentStatus) string {
	ids := make([]string, 0, len(d.Shards))
	for _, s := range d.Shards {
		ids = append(ids, s.ID)
	}
	return strings.Join(ids, ", ")
}
