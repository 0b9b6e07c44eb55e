// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/topo"
)

// look runs one read and prints its answer as JSON or by show.
func look[T any](e *env, c *cobra.Command, read func(*api.Client, context.Context) (T, error), show func(T)) error {
	client, err := e.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.Context(), askTimeout)
	defer cancel()
	v, err := read(client, ctx)
	if err != nil {
		return err
	}
	if e.json || show == nil {
		return printJSON(e.out, v)
	}
	show(v)
	return nil
}

func (e *env) explain() *cobra.Command {
	var all bool
	c := e.reads(&cobra.Command{
		Use: "explain", Short: "Say why the controller does what it does",
		Long: "Read the controller's rules aloud: which one matches now, and the fact that settled each rule before it. With --all\nalso the rules behind the one that matches.",
	})
	c.Flags().BoolVar(&all, "all", false, "also the rules that were not reached")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return look(e, c, (*api.Client).Explain, func(r topo.ControllerReport) {
			on := coloured(e.out)
			fmt.Fprintf(e.out, "%s: %s\n(decided by %s)\n\n", paint(on, bold, r.Rule), r.Why, r.Member)
			rows := [][]cell{{{text: "RULE"}, {text: "MATCHES"}, {text: "BECAUSE"}}}
			for _, t := range r.Traces {
				if !t.Reached && !all {
					continue
				}
				m := cell{"no", dim}
				if t.Matched {
					m = cell{"yes", green}
				}
				if !t.Reached {
					m.text += " (not reached)"
				}
				rows = append(rows, []cell{{text: t.Rule}, m, {text: t.Why}})
			}
			table(e.out, on, rows)
		})
	}
	return c
}

func (e *env) history() *cobra.Command {
	var last int
	c := e.reads(&cobra.Command{
		Use: "history", Short: "Show what was decided, and why",
		RunE: func(c *cobra.Command, _ []string) error {
			if last < 1 {
				return fail(ExitUsage, "--last %d: use 1 or more", last)
			}
			return look(e, c, func(client *api.Client, ctx context.Context) (topo.Timeline, error) {
				tl, err := client.History(ctx)
				tl.Events = tl.Events[max(0, len(tl.Events)-last):]
				return tl, err
			}, func(tl topo.Timeline) {
				if len(tl.Events) == 0 {
					fmt.Fprintln(e.err, "nothing was recorded yet")
					return
				}
				rows := [][]cell{{{text: "WHEN"}, {text: "EPOCH"}, {text: "PHASE"}, {text: "PRIMARY"}, {text: "RULE"}, {text: "WHY"}}}
				for _, ev := range tl.Events {
					rows = append(rows, []cell{{text: since(ev.AtMS)}, {text: fmt.Sprint(ev.Epoch)}, {text: string(ev.Phase)}, {text: orDash(string(ev.Primary))}, {text: ev.Rule}, {text: ev.Why}})
				}
				table(e.out, coloured(e.out), rows)
			})
		},
	})
	c.Flags().IntVarP(&last, "last", "n", 40, "how many of the latest events")
	return c
}

func (e *env) debug() *cobra.Command {
	c := &cobra.Command{Use: "debug", Short: "For those who debug Redoubt itself", RunE: needsVerb}
	c.AddCommand(e.asks(&cobra.Command{
		Use: "state", Short: "Print the controller's inputs, in the form of a test case", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return look(e, c, (*api.Client).State, nil) },
	}))
	return c
}

// needsVerb answers a command that only groups others.
func needsVerb(c *cobra.Command, _ []string) error {
	return fail(ExitUsage, "which one? See `%s --help`", c.CommandPath())
}
