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
	"redoubt/internal/topo"
)

func (e *env) set() *cobra.Command {
	wait := changeWait
	c := e.orders(&cobra.Command{
		Use:   "set NAME=VALUE...",
		Short: "Change a setting of the running shard",
		Long: "Change settings that the store holds, while the shard runs.\n\n" +
			"  durability=quorum     acknowledged writes are on ack-replicas replicas, too: promised once every proxy keeps to it\n" +
			"  durability=quorum+disk  … and on the disks of these and of the primary: promised once all nodes sync every write\n" +
			"  durability=async      acknowledged by the primary alone, at once\n" +
			"  ack-replicas=2        quorum, quorum+disk: replicas that must hold a write before it is acknowledged\n" +
			"  min-copies=2          with two nodes: 1 lets the primary go on alone, 2 makes writes wait\n" +
			"  max-loss.time=200ms   async: acknowledged writes that no replica holds may be at most so old; 0s: no bound\n" +
			"  max-loss.bytes=1mb    async: … and at most so many bytes; 0b: no bound",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return e.change(c.Context(), args, wait) },
	})
	c.Flags().DurationVar(&wait, "wait", wait, "how long to wait for a change that takes effect in steps; 0s: not at all")
	return c
}

// change reads the present settings, changes what the arguments name, writes them, and waits until they hold.
func (e *env) change(ctx context.Context, args []string, wait time.Duration) error {
	client, err := e.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	st, err := client.Status(ask)
	if err != nil {
		return err
	}
	if len(st.Deployments) == 0 {
		return fail(ExitFailed, "there is no deployment yet: see `redoubt status`")
	}
	want, loss := api.Settings{By: whoami()}, st.Deployments[0].MaxLoss
	for _, arg := range args {
		if err := setting(arg, &want, &loss); err != nil {
			return fail(ExitUsage, "%v", err)
		}
	}
	begun := time.Now()
	if err := client.Set(ask, want); err != nil {
		return err
	}
	st, err = e.settled(ctx, client, wait)
	if err != nil {
		return err
	}
	return e.settings(st, want, time.Since(begun))
}

// settings prints what holds now.
func (e *env) settings(st api.Status, want api.Settings, took time.Duration) error {
	d := st.Deployments[0]
	if e.json {
		return printJSON(e.out, api.Settings{MaxLoss: &d.MaxLoss, Durability: &d.Durability, AckReplicas: &d.AckReplicas, MinCopies: &d.MinCopies})
	}
	if want.MaxLoss != nil {
		fmt.Fprintf(e.out, "max-loss: %s\n", lossText(d.MaxLoss))
	}
	if want.MinCopies != nil {
		fmt.Fprintf(e.out, "min-copies: %d\n", d.MinCopies)
	}
	if want.Durability != nil || want.AckReplicas != nil {
		fmt.Fprintf(e.out, "durability: %s (%d ms)\n", promise(d), took.Milliseconds())
	}
	return nil
}

// setting reads one NAME=VALUE.
func setting(arg string, want *api.Settings, loss *topo.Loss) error {
	name, value, ok := strings.Cut(arg, "=")
	if !ok {
		return fmt.Errorf("%q is not NAME=VALUE", arg)
	}
	number := func(to **int) error {
		n, err := strconv.Atoi(value)
		*to = &n
		return err
	}
	switch name {
	case "durability":
		d := topo.Durability(value)
		want.Durability = &d
		return nil
	case "ack-replicas":
		return number(&want.AckReplicas)
	case "min-copies":
		return number(&want.MinCopies)
	case "max-loss.time":
		want.MaxLoss = loss
		return loss.Time.UnmarshalText([]byte(value))
	case "max-loss.bytes":
		want.MaxLoss = loss
		var b config.Bytes
		if err := b.UnmarshalText([]byte(value)); err != nil {
			return err
		}
		loss.Bytes = int64(b)
		return nil
	}
	return fmt.Errorf("%s cannot be changed while the shard runs: durability, ack-replicas, min-copies, max-loss.time and max-loss.bytes can", name)
}

// lossText is the dial for people.
func lossText(l topo.Loss) string {
	var parts []string
	if l.Time > 0 {
		parts = append(parts, l.Time.String())
	}
	if l.Bytes > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes", l.Bytes))
	}
	if len(parts) == 0 {
		return "no bound"
	}
	return strings.Join(parts, " and ")
}
