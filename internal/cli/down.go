// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/app"
)

// downGrace is how long members may take to stop by themselves before they are killed.
const downGrace = 20 * time.Second

func (e *env) down() *cobra.Command {
	var dir string
	var purge bool
	c := &cobra.Command{
		Use: "down", Short: "Stop a deployment that `redoubt up` started",
		Long: "Stop exactly the processes of a deployment that `redoubt up` started: members first, then their servers. The data\nstays, unless --purge is given.",
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := readPlan(dir)
			if errors.Is(err, fs.ErrNotExist) {
				fmt.Fprintf(e.err, "there is no deployment in %s\n", dir)
				return nil
			}
			if err != nil {
				return err
			}
			if purge {
				if err := e.confirm(fmt.Sprintf("Purge: stop the deployment in %s and remove its data.", dir)); err != nil {
					return err
				}
			}
			if err := e.stopAll(c.Context(), dir, p); err != nil || !purge {
				return err
			}
			if p.Outside != "" {
				fmt.Fprintf(e.out, "what was agreed stays in the store: remove the keys of %s there\n", p.Outside)
			}
			return remove(dir, p)
		},
	}
	c.Flags().StringVar(&dir, "dir", defaultDir, "where the deployment lives")
	c.Flags().BoolVar(&purge, "purge", false, "remove its data, too")
	c.Flags().BoolVarP(&e.yes, "yes", "y", false, "do not ask")
	return c
}

// stopAll stops the members, all at the same time and without handing over, and then what is left of their servers.
func (e *env) stopAll(ctx context.Context, dir string, p plan) error {
	var members, servers []app.Instance
	for _, m := range p.Members {
		at := filepath.Join(dir, m.Dir, "data")
		if i, err := app.ReadInstance(at); err == nil && i.Alive() {
			members = append(members, i)
		}
		for _, dir := range p.serverDirs(at, m) {
			if i, err := app.ReadServer(dir); err == nil {
				servers = append(servers, i)
			}
		}
	}
	n := len(members)
	// A member that is interrupted stops its server, too, and hands over to nobody: all of them stop.
	err := stop(ctx, members, syscall.SIGINT, downGrace)
	var left []app.Instance
	for _, s := range servers {
		if s.Alive() {
			left = append(left, s)
		}
	}
	err = errors.Join(err, stop(ctx, left, syscall.SIGTERM, downGrace))
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "stopped %d members of the deployment in %s\n", n, dir)
	return nil
}

// stop signals all, waits, and kills those that are still there.
func stop(ctx context.Context, all []app.Instance, sig syscall.Signal, grace time.Duration) error {
	var errs []error
	for _, i := range all {
		errs = append(errs, i.Signal(sig))
	}
	if gone(ctx, all, grace) {
		return errors.Join(errs...)
	}
	for _, i := range all {
		if i.Alive() {
			errs = append(errs, i.Signal(syscall.SIGKILL))
		}
	}
	if !gone(ctx, all, 5*time.Second) {
		errs = append(errs, errors.New("a process does not end even when killed: look for it in state D"))
	}
	return errors.Join(errs...)
}

func gone(ctx context.Context, all []app.Instance, grace time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		alive := false
		for _, i := range all {
			alive = alive || i.Alive()
		}
		if !alive {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// remove deletes what `redoubt up` made, and the directory if nothing else is in it.
func remove(dir string, p plan) error {
	var errs []error
	for _, m := range p.Members {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, m.Dir)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the deployment: %w", err)
	}
	if err := os.Remove(filepath.Join(dir, planFile)); err != nil {
		return fmt.Errorf("remove the deployment: %w", err)
	}
	_ = os.Remove(dir) // what somebody else put there stays
	return nil
}
