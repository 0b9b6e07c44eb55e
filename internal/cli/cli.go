// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line. Each verb has its own file; print.go holds the rules of output.
//
// It decides nothing about shards: reads and orders go to a member's API, and `run` hands over to app. Its invariant: the
// result is on standard output and everything else on standard error, and the exit status is one of the documented
// codes. Goroutines: those of the verbs that start processes, which wait for them.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/config"
)

// The exit codes, which scripts may rely on.
const (
	ExitOK          = 0
	ExitFailed      = 1 // it was refused or did not work; the message says why
	ExitUsage       = 2 // the command line is wrong
	ExitNobody      = 3 // no member answers
	ExitUnknown     = 4 // the outcome is not known (yet): look at the status
	ExitConfig      = 5 // the configuration file has problems
	ExitDeclined    = 6 // you said no
	ExitNotServing  = 7 // status --check: the shard has no serving primary
	ExitInterrupted = 130
)

const exitCodes = `Exit codes: 0 done; 1 refused or failed; 2 wrong command line; 3 no member answers; 4 outcome unknown (yet);
5 configuration has problems; 6 declined at the prompt; 7 not serving (status --check); 130 interrupted.`

// failure is an error that decides the exit code.
type failure struct {
	code int
	err  error
}

// Error returns the message.
func (f failure) Error() string { return f.err.Error() }

// Unwrap returns what went wrong.
func (f failure) Unwrap() error { return f.err }

func fail(code int, format string, args ...any) error {
	return failure{code, fmt.Errorf(format, args...)}
}

// Main runs the program with the process's arguments and returns its exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return Execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// Execute runs one command line and returns its exit code.
func Execute(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	e := &env{in: in, out: out, err: errOut}
	root := e.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return ExitInterrupted
	}
	if m := err.Error(); strings.HasPrefix(m, "unknown command ") || strings.HasPrefix(m, "if any flags in the group ") { // cobra has no types for these
		err = fail(ExitUsage, "%w\nSee `redoubt --help`", err)
	}
	fmt.Fprintf(errOut, "redoubt: %v\n", err)
	return codeOf(err)
}

func codeOf(err error) int {
	var f failure
	var problems config.Problems
	var refused *api.Error
	switch {
	case errors.As(err, &f):
		return f.code
	case errors.As(err, &problems):
		return ExitConfig
	case errors.Is(err, api.ErrNobody):
		return ExitNobody
	case errors.As(err, &refused) && refused.Code == "unsure", errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.ErrUnexpectedEOF):
		return ExitUnknown
	}
	return ExitFailed
}

// env is what the verbs share: the streams and the flags that all of them know.
type env struct {
	in    io.Reader
	out   io.Writer
	err   io.Writer
	dir   string
	api   string
	shard string
	json  bool
	yes   bool
}

func (e *env) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "redoubt",
		Short: "Keeps Redis and Valkey up",
		Long: "Redoubt keeps Redis and Valkey up: it watches the servers, fails over by consensus, fences what must not write,\n" +
			"and gives every client one address that never dies.\n\nTry it on this machine:  redoubt up && redis-cli -p 6379\n\n" + exitCodes,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fail(ExitUsage, "%w (see `%s --help`)", err, c.CommandPath())
	})
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run:"}, &cobra.Group{ID: "look", Title: "Look:"}, &cobra.Group{ID: "order", Title: "Give orders:"}, &cobra.Group{ID: "more", Title: "More:"})
	root.SetHelpCommandGroupID("more")
	root.SetCompletionCommandGroupID("more")
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			if c.Args == nil {
				c.Args = cobra.NoArgs
			}
			c.Args = usageArgs(c.Args)
			root.AddCommand(c)
		}
	}
	add("run", e.up(), e.down(), e.run(), e.adopt())
	add("look", e.status(), e.watch(), e.explain(), e.history(), e.cluster(), e.hotkeys(), e.bigkeys())
	add("order", e.switchover(), e.failover(), e.pause(), e.resume(), e.set(), e.upgrade(), e.member(), e.node(), e.reshard(), e.shards(), e.handBack(), e.salvage(), e.migrate())
	add("more", e.config(), e.debug(), e.version())
	root.AddCommand(e.guard(), e.holdAddress())
	return root
}

// usageArgs gives a wrong number of arguments the exit code for a wrong command line.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return fail(ExitUsage, "%w (see `%s --help`)", err, c.CommandPath())
		}
		return nil
	}
}

// asks gives a verb the flags that say whom to ask.
func (e *env) asks(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&e.dir, "dir", "", "a deployment made by `redoubt up` (default ./.redoubt if it exists)")
	c.Flags().StringVar(&e.api, "api", "", "API addresses of members, host:port, separated by commas (default "+defaultAPI+")")
	c.Flags().StringVar(&e.shard, "shard", "", "the shard that is meant, where there are several (its id, as status shows it)")
	c.MarkFlagsMutuallyExclusive("dir", "api")
	return c
}

// reads is asks for a verb that can answer in JSON.
func (e *env) reads(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&e.json, "json", false, "answer in JSON")
	return e.asks(c)
}

// orders is asks for a verb that asks before it acts.
func (e *env) orders(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVarP(&e.yes, "yes", "y", false, "do not ask")
	return e.reads(c)
}
