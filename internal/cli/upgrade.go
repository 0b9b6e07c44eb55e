// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
)

func (e *env) upgrade() *cobra.Command {
	var members []string
	var all bool
	var wait time.Duration
	c := e.asks(&cobra.Command{
		Use: "upgrade", Short: "Replace members' processes by the program on disk, with their clients",
		Long: "Replace the processes of members by the program that is on disk now: a new version, or the same one with a changed\n" +
			"configuration. Clients keep their connections, servers go on running, and nothing is failed over. Members are taken\n" +
			"one after the other. A new process that finds something wrong changes nothing: the old one goes on.\n\n" +
			"Put the new program in place of the old one by renaming, and see `redoubt config check`, before.",
		RunE: func(c *cobra.Command, _ []string) error {
			addrs, err := e.upgradees(members, all)
			if err != nil {
				return err
			}
			for _, addr := range addrs {
				if err := e.upgradeOne(c.Context(), addr, wait); err != nil {
					return err
				}
			}
			return nil
		},
	})
	c.Flags().StringSliceVar(&members, "member", nil, "with --dir: the members to replace, by id")
	c.Flags().BoolVar(&all, "all", false, "with --dir: all members, one after the other")
	c.Flags().DurationVar(&wait, "wait", 30*time.Second, "give up waiting for a member's new process after this time")
	c.MarkFlagsMutuallyExclusive("member", "all")
	return c
}

// upgradees returns the API addresses of the members that are meant.
func (e *env) upgradees(members []string, all bool) ([]string, error) {
	if e.api != "" {
		if len(members) > 0 || all {
			return nil, fail(ExitUsage, "--member and --all go with --dir: --api names the members itself, by the addresses of their APIs")
		}
		return strings.Split(e.api, ","), nil
	}
	dir := e.dir
	if dir == "" {
		dir = defaultDir
	}
	p, err := readPlan(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(ExitUsage, "there is no deployment in %s: name it with --dir, or a member with --api", dir)
	}
	if err != nil {
		return nil, err
	}
	if len(members) == 0 && !all {
		return nil, fail(ExitUsage, "which members? Use --all, or --member ID")
	}
	var addrs []string
	for _, m := range p.Members {
		if all || slices.Contains(members, m.ID) {
			addrs = append(addrs, m.API)
		}
		members = slices.DeleteFunc(members, func(id string) bool { return id == m.ID })
	}
	if len(members) > 0 {
		return nil, fail(ExitUsage, "no member %s in %s", strings.Join(members, ", "), dir)
	}
	return addrs, nil
}

// upgradeOne replaces one member's process, and waits until the new one answers and the shard is whole.
func (e *env) upgradeOne(ctx context.Context, addr string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	client := api.NewClient(addr)
	defer client.Close()
	began := time.Now()
	u, err := client.Upgrade(ctx)
	if err != nil {
		return fmt.Errorf("the member at %s was not replaced: %w", addr, err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	said := "it does not answer"
	away := time.Now() // when the old process was last seen not to be the member
	for {
		if st, err := client.Status(ctx); err == nil {
			var done bool
			if done, said = replaced(st, u); done {
				fmt.Fprintf(e.out, "%s: process %d took over from %d in %s\n", u.Member, u.New, u.Old, time.Since(began).Round(time.Millisecond))
				return nil
			}
			if !isMember(st, u.Member, u.Old) {
				away = time.Now()
			}
			if time.Since(away) > takenBack {
				return fail(ExitFailed, "%s was not replaced: process %d did not take over in time, and process %d is the member again; see its log", u.Member, u.New, u.Old)
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fail(ExitUnknown, "%s was not replaced within %s: %s; see its log", u.Member, wait, said)
		case <-tick.C:
		}
	}
}

// takenBack is how long the old process is seen as the member until it is certain that the new one has given up: longer than
// a hand-over may take.
const takenBack = 8 * time.Second

func isMember(st api.Status, id string, pid int) bool {
	return slices.ContainsFunc(st.Members, func(m api.MemberStatus) bool { return m.ID == id && m.PID == pid && m.Alive })
}

// replaced reports whether the member is the new process, and the shard as it should be; otherwise why not.
func replaced(st api.Status, u api.Upgraded) (done bool, why string) {
	for _, m := range st.Members {
		if m.ID == u.Member && m.PID != u.New {
			return false, fmt.Sprintf("it is still process %d", m.PID)
		}
		if m.ID == u.Member && m.Alive {
			done = true
		}
	}
	if !done {
		return false, "it does not report yet"
	}
	if !serving(st) {
		return false, "the shard does not serve"
	}
	for _, d := range st.Deployments {
		for _, s := range d.Shards {
			for _, n := range s.Nodes {
				if string(n.ID) == u.Member && !settled(n, u.New) {
					return false, fmt.Sprintf("its node is %s, with the agent of process %d", n.State, n.AgentPID)
				}
			}
		}
	}
	return true, ""
}
