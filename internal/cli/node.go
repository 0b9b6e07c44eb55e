// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/topo"
)

// changeWait is how long a verb waits for a change that takes effect in steps.
const changeWait = time.Minute

func (e *env) node() *cobra.Command {
	c := &cobra.Command{
		Use: "node", Short: "Add or remove a data node",
		Long: "The roster of the shard: its data nodes. Writes go on meanwhile, and nothing that was acknowledged can be lost by it.",
		RunE: needsVerb,
	}
	c.AddCommand(e.nodeAdd(), e.nodeMove(), e.nodeRemove())
	return c
}

func (e *env) nodeMove() *cobra.Command {
	var n topo.Node
	c := e.orders(&cobra.Command{
		Use: "move ID", Short: "Write down another address of a data node", Args: usageArgs(cobra.ExactArgs(1)),
		Long: "Write down another address of a data node that is not the primary. Stop its member first, give its server the new address in\nits file, and start it again; then say so here. The others follow and meet it at the new address.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, args []string) error {
			n.ID = topo.NodeID(args[0])
			return e.propose(c.Context(), func(context.Context, *api.Client) (string, error) {
				return fmt.Sprintf("Node %s is at %s from now on.", n.ID, n.Addr), nil
			}, func(ctx context.Context, client *api.Client) error {
				return e.roster(ctx, client, 0, fmt.Sprintf("%s is at %s", n.ID, n.Addr), func(ctx context.Context) error {
					return client.AddNode(ctx, api.NodeRequest{Node: n, Move: true, By: whoami()})
				})
			})
		},
	})
	c.Flags().StringVar(&n.Addr, "addr", "", "where the others reach its server")
	c.Flags().IntVar(&n.BusPort, "bus-port", 0, "mode cluster: where the servers reach each other (default: 10000 above its port)")
	_ = c.MarkFlagRequired("addr")
	return c
}

func (e *env) nodeAdd() *cobra.Command {
	var n topo.Node
	wait := changeWait
	c := e.orders(&cobra.Command{
		Use: "add ID", Short: "Take a data node into the roster", Args: usageArgs(cobra.ExactArgs(1)),
		Long: "Take a data node into the roster. Start its member first, with `store: {join: ADDRESS}` and with the node in its nodes\nand as its node. It copies the data from a replica, and counts once it has everything. ack-replicas stays as it is.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, args []string) error {
			n.ID = topo.NodeID(args[0])
			return e.propose(c.Context(), func(context.Context, *api.Client) (string, error) {
				return fmt.Sprintf("Add node %s: it copies the data from a replica and joins the roster once it has everything.", n.ID), nil
			}, func(ctx context.Context, client *api.Client) error {
				return e.roster(ctx, client, wait, fmt.Sprintf("%s is in the roster", n.ID), func(ctx context.Context) error {
					return client.AddNode(ctx, api.NodeRequest{Node: n, By: whoami()})
				})
			})
		},
	})
	c.Flags().StringVar(&n.Addr, "addr", "", "where the others reach its server (default: what its member reports)")
	c.Flags().IntVar(&n.BusPort, "bus-port", 0, "mode cluster: where the servers reach each other (default: what its member reports, else 10000 above its port)")
	c.Flags().StringVar(&n.Host, "host", "", "failure domain (default: its own)")
	c.Flags().StringVar(&n.Zone, "zone", "", "of its machine; reads prefer their own")
	c.Flags().IntVar(&n.Priority, "priority", 0, "smaller is preferred among equals")
	c.Flags().DurationVar(&wait, "wait", wait, "how long to wait until it is in; 0s: not at all")
	return c
}

func (e *env) nodeRemove() *cobra.Command {
	wait := changeWait
	c := e.orders(&cobra.Command{
		Use: "remove ID", Short: "Take a data node out of the roster", Args: usageArgs(cobra.ExactArgs(1)),
		Long: "Take a data node out of the roster: it is frozen, the others prove that they hold all that it acknowledged, and then it\ncounts no more. Stop its member afterwards, and `redoubt member remove ID`. One that is lost cannot be\nfrozen: order a `redoubt switchover` while this waits, and the next primary will not let it in.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, args []string) error {
			id := topo.NodeID(args[0])
			return e.propose(c.Context(), func(context.Context, *api.Client) (string, error) {
				return fmt.Sprintf("Remove node %s: it stands still, the others prove that they hold everything, and it counts no more.", id), nil
			}, func(ctx context.Context, client *api.Client) error {
				return e.roster(ctx, client, wait, fmt.Sprintf("%s is not in the roster any more", id), func(ctx context.Context) error { return client.RemoveNode(ctx, id) })
			})
		},
	})
	c.Flags().DurationVar(&wait, "wait", wait, "how long to wait until it is out; 0s: not at all")
	return c
}

// roster gives an order about the roster and waits until it holds.
func (e *env) roster(ctx context.Context, client *api.Client, wait time.Duration, done string, order func(context.Context) error) error {
	begun := time.Now()
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := order(ask); err != nil {
		return err
	}
	st, err := e.settled(ctx, client, wait)
	if err != nil {
		return err
	}
	if e.json {
		return printJSON(e.out, map[string]any{"durability": st.Deployments[0].Durability, "ack_replicas": st.Deployments[0].AckReplicas, "nodes": nodesOf(st.Deployments[0])})
	}
	if changeOf(st.Deployments[0]) != nil {
		done = "under way; see `redoubt status`"
	}
	fmt.Fprintf(e.out, "%s: %d nodes, %s (%d ms)\n", done, nodesOf(st.Deployments[0]), promise(st.Deployments[0]), time.Since(begun).Milliseconds())
	return nil
}

// settled waits until no change is under way, says what it waits for, and returns the status of then.
func (e *env) settled(ctx context.Context, client *api.Client, wait time.Duration) (api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+askTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	said := ""
	for end := time.Now().Add(wait); ; {
		st, err := client.Status(ctx)
		if err != nil {
			return st, err
		}
		if len(st.Deployments) == 0 || len(st.Deployments[0].Shards) == 0 {
			return st, fail(ExitFailed, "nothing has been agreed about the shard yet: see `redoubt status`")
		}
		c := changeOf(st.Deployments[0])
		if c == nil || wait == 0 {
			return st, nil
		}
		if now := growing(*c); now != said {
			said = now
			fmt.Fprintln(e.err, now)
		}
		if time.Now().After(end) {
			return st, fail(ExitUnknown, "it is still under way after %s (%s) and goes on: see `redoubt status`", wait, c.Waits)
		}
		select {
		case <-ctx.Done():
			return st, ctx.Err()
		case <-tick.C:
		}
	}
}

// growing says what is under way and what it waits for.
func growing(c api.ChangeStatus) string {
	word := "growing"
	if c.Kind == topo.ChangeRemove {
		word = "removing"
	}
	return fmt.Sprintf("%s (%s): %s", word, c.Text, c.Waits)
}

// promise is what a deployment promises now, in short.
func promise(d api.DeploymentStatus) string {
	if !d.Durability.Waits() {
		return string(d.Durability)
	}
	return fmt.Sprintf("%s, %d of %d replicas acknowledge", d.Durability, d.AckReplicas, replicasOf(d))
}

// changeOf is the first change that is under way in a shard; nil: there is none.
func changeOf(d api.DeploymentStatus) *api.ChangeStatus {
	for _, s := range d.Shards {
		if s.Change != nil {
			return s.Change
		}
	}
	return nil
}
