// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
)

// handBackWait is how long the verb waits for the cluster to be itself again.
const handBackWait = 65 * time.Second

func (e *env) handBack() *cobra.Command {
	var plan string
	var wait time.Duration
	c := e.orders(&cobra.Command{
		Use: "hand-back", Short: "Leave what was adopted to those who decided before",
		Long: "Leave a cluster that was adopted (redoubt adopt --cluster) to itself again: nothing is failed over by Redoubt any more, the\n" +
			"servers' settings become what they were found to be, and their own elections are switched on again. Nothing is restarted, and\n" +
			"clients go on. The proxies serve until the members are stopped; point clients at the servers before.\n\n" +
			"With --out, the plan of redoubt adopt --sentinel: the members let go of the servers, and the Sentinels decide again. It says\n" +
			"each step, and can be repeated.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, _ []string) error {
			if plan != "" {
				return e.handBackToSentinels(c.Context(), plan, wait)
			}
			return e.propose(c.Context(), func(context.Context, *api.Client) (string, error) {
				return "Hand the cluster back: Redoubt lets go of its servers, their settings become what they were, and they elect themselves again.", nil
			}, func(ctx context.Context, client *api.Client) error {
				begun := time.Now()
				ctx, cancel := context.WithTimeout(ctx, handBackWait)
				defer cancel()
				if err := client.HandBack(ctx, whoami()); err != nil {
					return err
				}
				took := time.Since(begun).Milliseconds()
				if e.json {
					return printJSON(e.out, map[string]any{"handed_back": true, "ms": took})
				}
				fmt.Fprintf(e.out, "the cluster is its own again (%d ms): stop the members when no client uses their proxies any more\n", took)
				return nil
			})
		},
	})
	c.Flags().StringVar(&plan, "out", "", "Sentinels: the directory that redoubt adopt --sentinel wrote its plan to")
	c.Flags().DurationVar(&wait, "wait", 2*time.Minute, "Sentinels: how long to wait for them to be started")
	return c
}
