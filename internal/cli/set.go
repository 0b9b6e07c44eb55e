// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/config"
	"redoubt/internal/topo"
)

func (e *env) set() *cobra.Command {
	return e.orders(&cobra.Command{
		Use:   "set NAME=VALUE...",
		Short: "Change a setting of the running shard",
		Long: "Change settings that the store holds, while the shard runs.\n\n" +
			"  max-loss.time=200ms   async: acknowledged writes that no replica holds may be at most so old; 0s: no bound\n" +
			"  max-loss.bytes=1mb    async: … and at most so many bytes; 0b: no bound",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return look(e, c, func(client *api.Client, ctx context.Context) (api.Settings, error) { return change(ctx, client, args) },
				func(now api.Settings) { fmt.Fprintf(e.out, "max-loss: %s\n", lossText(*now.MaxLoss)) })
		},
	})
}

// change reads the present settings, changes what the arguments name, and writes them.
func change(ctx context.Context, client *api.Client, args []string) (api.Settings, error) {
	st, err := client.Status(ctx)
	if err != nil {
		return api.Settings{}, err
	}
	if len(st.Deployments) == 0 {
		return api.Settings{}, fail(ExitFailed, "there is no deployment yet: see `redoubt status`")
	}
	loss := st.Deployments[0].MaxLoss
	for _, arg := range args {
		if err := setting(arg, &loss); err != nil {
			return api.Settings{}, fail(ExitUsage, "%v", err)
		}
	}
	want := api.Settings{MaxLoss: &loss}
	return want, client.Set(ctx, want)
}

// setting reads one NAME=VALUE.
func setting(arg string, loss *topo.Loss) error {
	name, value, ok := strings.Cut(arg, "=")
	if !ok {
		return fmt.Errorf("%q is not NAME=VALUE", arg)
	}
	switch name {
	case "max-loss.time":
		return loss.Time.UnmarshalText([]byte(value))
	case "max-loss.bytes":
		var b config.Bytes
		if err := b.UnmarshalText([]byte(value)); err != nil {
			return err
		}
		loss.Bytes = int64(b)
		return nil
	}
	return fmt.Errorf("%s cannot be changed while the shard runs: max-loss.time and max-loss.bytes can", name)
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
