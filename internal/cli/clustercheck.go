// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
)

func (e *env) cluster() *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "Look at the servers' own cluster (mode cluster)", RunE: needsVerb}
	c.AddCommand(e.reads(&cobra.Command{
		Use: "check", Short: "What is wrong with it, what is done about it, and what you have to do", Args: usageArgs(cobra.NoArgs),
		Long: "What the servers of the cluster see, compared with what is agreed: servers that nobody knows, addresses, slots, marks of\n" +
			"moves that were not finished. Most of it mends itself; what a person has to do is said. Exit code 1: there is something.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, _ []string) error {
			var found api.ClusterCheck
			err := look(e, c, (*api.Client).ClusterCheck, func(check api.ClusterCheck) {
				found = check
				e.printClusterCheck(check)
			})
			if err == nil && (len(found.Findings) > 0 || len(found.Silent) > 0) {
				err = fail(ExitFailed, "%d findings", len(found.Findings)+len(found.Silent))
			}
			return err
		},
	}))
	return c
}

func (e *env) printClusterCheck(c api.ClusterCheck) {
	rows := [][]cell{{{text: "FOUND"}, {text: "BY"}, {text: "WHAT"}, {text: "WHO ACTS"}}}
	for _, f := range c.Findings {
		who := cell{"you: " + f.Person, red}
		if f.Person == "" {
			who = cell{"nobody needs to: " + f.Does, green}
		}
		rows = append(rows, []cell{{text: f.Name}, {text: strings.Join(f.Servers, " ")}, {text: f.Text}, who})
	}
	for _, m := range c.Silent {
		rows = append(rows, []cell{{text: "silent"}, {text: m}, {text: "nothing was heard of its servers"}, {"you: see to the member (redoubt status)", red}})
	}
	if len(rows) > 1 {
		table(e.out, coloured(e.out), rows)
		fmt.Fprintln(e.out)
	}
	fmt.Fprintf(e.out, "%d servers were asked; %s\n", c.Servers, cmp.Or(map[bool]string{true: "they agree with what is agreed"}[len(rows) == 1], "the rest is as agreed"))
}
