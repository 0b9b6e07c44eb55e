// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
)

func (e *env) member() *cobra.Command {
	c := &cobra.Command{
		Use: "member", Short: "List or remove the members that hold the agreed state",
		Long: "The members of the store hold the agreed state; a majority of them must be alive. One is added by starting it with\n" +
			"`store: {join: ADDRESS}` in its configuration file, where ADDRESS is the store address of any present member.\n" +
			"Where etcd or Consul keep the agreed state, each member that starts is on the list.",
		RunE: needsVerb,
	}
	list := e.reads(&cobra.Command{
		Use: "list", Short: "List the members", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return look(e, c, (*api.Client).Members, e.printMembers) },
	})
	remove := e.orders(&cobra.Command{
		Use: "remove ID", Short: "Remove a member", Args: usageArgs(cobra.ExactArgs(1)),
		Long: "Remove a member for good: an arbiter, or a member that is lost. If its process runs, it stops by itself. To let\n" +
			"it come back, empty its store directory and start it with `store: {join: ADDRESS}`.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, args []string) error { return e.removeMember(c.Context(), args[0]) },
	})
	c.AddCommand(list, remove)
	return c
}

func (e *env) printMembers(l api.MemberList) {
	rows := [][]cell{{{text: "MEMBER"}, {text: "STATE"}, {text: "STORE"}, {text: "DATA NODE"}}}
	for _, m := range l.Members {
		rows = append(rows, []cell{{text: m.ID}, memberState(m.Alive, m.Controller), {text: m.Addr}, {text: orDash(string(m.Node))}})
	}
	table(e.out, coloured(e.out), rows)
	fmt.Fprintf(e.out, "\n%d of %d must be alive\n", l.Majority, len(l.Members))
	if l.Store != "raft" {
		fmt.Fprintf(e.out, "the agreed state is kept by %s\n", l.Store)
	}
}

func memberState(alive, controller bool) cell {
	switch {
	case !alive:
		return cell{"no report", red}
	case controller:
		return cell{"up, controller", green}
	}
	return cell{"up", green}
}

// removeMember shows what the membership will be, asks, and removes.
func (e *env) removeMember(ctx context.Context, id string) error {
	var left, majority int
	return e.propose(ctx, func(ctx context.Context, client *api.Client) (string, error) {
		l, err := client.Members(ctx)
		if err != nil {
			return "", err
		}
		var alive int
		left, majority, alive, err = l.Removal(id)
		return fmt.Sprintf("Remove member %s: of the %d members that are left %d are alive, and %d must be.", id, left, alive, majority), err
	}, func(ctx context.Context, client *api.Client) error {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if err := client.RemoveMember(ctx, id); err != nil {
			return err
		}
		if e.json {
			return printJSON(e.out, map[string]any{"removed": id, "members": left, "majority": majority})
		}
		fmt.Fprintf(e.out, "%s is removed; %d of %d members must be alive now\n", id, majority, left)
		return nil
	})
}
