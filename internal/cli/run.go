// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/address"
	"redoubt/internal/app"
	"redoubt/internal/config"
	"redoubt/internal/redisd"
)

func (e *env) run() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "run", Short: "Run one member",
		Long: "Run one member: the data node beside it, and its share of the store, the proxies and the other faces.\n\n" +
			"SIGTERM hands the primary over to another node, then stops. SIGINT stops without handing over. A second signal of\neither kind cuts the waiting short. SIGUSR2 hands the member over to a new process of the program on disk; see\n`redoubt upgrade`.",
		RunE: func(c *cobra.Command, _ []string) error {
			before, err := app.Inherit()
			if err != nil {
				return err
			}
			cfg, err := config.Load(file)
			if err != nil {
				if before != nil {
					before.Refuse(fmt.Errorf("%s cannot be used: %w", file, err))
				}
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			return e.runMember(c.Context(), app.Options{
				Config: cfg, File: file, Version: versionOf(), Log: logger(cfg.Log, e), GuardCommand: []string{self, "guard"}, HoldCommand: []string{self, "hold-address"},
				Command: []string{self, "run", "-c", file}, Predecessor: before,
			})
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "redoubt.yaml", "the member's configuration file")
	return c
}

// soon is when a signal that has ended the command's context has come here, too, if it ever does.
const soon = 100 * time.Millisecond

// runMember turns signals into the two ways of stopping. The member does not run under the command's context, which ends at the first
// interrupt, before anything was handed over; but one that came before signals did has ended nothing else.
func (e *env) runMember(command context.Context, o app.Options) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGUSR2)
	defer signal.Stop(upgrade)
	o.Upgrade = upgrade
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := make(chan app.StopMode, 2)
	o.Stop = stop
	done := make(chan struct{})
	defer close(done)
	go func() {
		ended, late, asked := command.Done(), (<-chan time.Time)(nil), false
		for {
			select {
			case <-done:
				return
			case <-ended:
				ended, late = nil, time.After(soon)
			case <-late:
				if !asked {
					asked = true
					stop <- app.StopNow
				}
			case s := <-signals:
				switch {
				case asked:
					cancel()
				case s == syscall.SIGTERM:
					stop <- app.StopHandover
				default:
					stop <- app.StopNow
				}
				asked = true
			}
		}
	}()
	err := app.Run(ctx, o)
	if errors.Is(err, context.Canceled) {
		return nil // cut short, as asked for
	}
	return err
}

func logger(l config.Log, e *env) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l.Level)) // validated by config
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
			a.Value = slog.StringValue(a.Value.Time().UTC().Format("2006-01-02T15:04:05.000000Z")) // a failover is a matter of milliseconds
		}
		return a
	}}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(e.err, o))
	}
	return slog.New(slog.NewTextHandler(e.err, o))
}

func (e *env) guard() *cobra.Command {
	return &cobra.Command{
		Use: "guard", Short: "Fence a primary whose agent died (started by `redoubt run`)", Hidden: true, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			// It must outlive what ends its agent: an interrupt at the terminal is not for it.
			signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			return redisd.RunGuard(context.WithoutCancel(c.Context()), args)
		},
	}
}

func (e *env) holdAddress() *cobra.Command {
	return &cobra.Command{
		Use: "hold-address", Short: "Hold a floating address while the member says so (started by `redoubt run`)", Hidden: true, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // it ends with its member
			return address.RunHolder(context.WithoutCancel(c.Context()), args)
		},
	}
}

func (e *env) config() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check a configuration file, or print an annotated one", RunE: needsVerb}
	var file string
	check := &cobra.Command{
		Use: "check", Short: "Report everything that is wrong with a configuration file", Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return e.check(file) },
	}
	check.Flags().StringVarP(&file, "config", "c", "redoubt.yaml", "the member's configuration file")
	check.Flags().BoolVar(&e.json, "json", false, "answer in JSON")
	c.AddCommand(check, &cobra.Command{
		Use: "sample", Short: "Print an annotated configuration file", Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := e.out.Write(config.Sample)
			return err
		},
	})
	return c
}

func (e *env) check(file string) error {
	cfg, err := config.Load(file)
	var problems config.Problems
	if err != nil && !errors.As(err, &problems) {
		return fail(ExitConfig, "%w", err)
	}
	if e.json {
		if problems == nil {
			problems = config.Problems{}
		}
		if err := printJSON(e.out, map[string]any{"ok": len(problems) == 0, "problems": problems}); err != nil {
			return err
		}
		if len(problems) > 0 {
			return fail(ExitConfig, "%s in %s", problemCount(problems), file)
		}
		return nil
	}
	if len(problems) > 0 {
		return fail(ExitConfig, "%s in %s:\n%w", problemCount(problems), file, problems)
	}
	d := cfg.Deployments[0]
	nodes, shards := 0, ""
	for _, u := range d.Units() {
		nodes += len(u.Nodes)
	}
	if d.Sharded() {
		shards = fmt.Sprintf("%d shards with ", len(d.Shards))
	}
	fmt.Fprintf(e.out, "%s is sound: member %s, deployment %s, %s%d nodes, durability %s\n", file, cfg.Member.ID, d.Name, shards, nodes, d.Durability)
	return nil
}

func problemCount(p config.Problems) string {
	if len(p) == 1 {
		return "1 problem"
	}
	return fmt.Sprintf("%d problems", len(p))
}

func (e *env) version() *cobra.Command {
	c := &cobra.Command{
		Use: "version", Short: "Print the version",
		RunE: func(*cobra.Command, []string) error {
			if e.json {
				return printJSON(e.out, map[string]string{"version": versionOf()})
			}
			fmt.Fprintln(e.out, "redoubt", versionOf())
			return nil
		},
	}
	c.Flags().BoolVar(&e.json, "json", false, "answer in JSON")
	return c
}

// versionOf is the module's version, or the commit that was built.
func versionOf() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v != "" && v != "(devel)" {
		return strings.TrimPrefix(v, "v")
	}
	v = "devel"
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += "-" + s.Value[:min(len(s.Value), 12)]
		}
	}
	return v
}
