// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// askTimeout bounds a read.
const askTimeout = 10 * time.Second

func (e *env) status() *cobra.Command {
	var check bool
	c := e.reads(&cobra.Command{
		Use: "status", Short: "Show the shard, its nodes and the members",
		Long: "Show the shard, its nodes and the members, as agreed and as reported.\n\nThe JSON form is a contract for scripts: deployments[].shards[].{id,epoch,phase,primary,nodes[]} with\n" +
			"nodes[].{id,host,addr,role,pid,agent_pid,offset,lag,state}, deployments[].proxies[].{addr,readonly_addr,pid},\nsentinels[].addr, controller. Fields are added, never renamed or removed.",
		RunE: func(c *cobra.Command, _ []string) error {
			serves := false
			err := look(e, c, func(client *api.Client, ctx context.Context) (api.Status, error) {
				st, err := client.Status(ctx)
				serves = serving(st)
				return st, err
			}, func(st api.Status) { printStatus(e.out, coloured(e.out), st) })
			if err == nil && check && !serves {
				return fail(ExitNotServing, "the shard has no serving primary")
			}
			return err
		},
	})
	c.Flags().BoolVar(&check, "check", false, "exit with 7 unless the shard serves")
	return c
}

func serving(st api.Status) bool {
	for _, d := range st.Deployments {
		for _, s := range d.Shards {
			if s.Phase != topo.PhaseServing {
				return false
			}
			for _, n := range s.Nodes {
				if n.ID == s.Primary && n.State != api.StateServing {
					return false
				}
			}
		}
	}
	return len(st.Deployments) > 0 && !st.Stale
}

func stateColour(state string) colour {
	switch state {
	case api.StateServing, api.StateFollowing, "up":
		return green
	case api.StateSyncing, api.StateFrozen, string(topo.HealthLoading), string(topo.HealthBusy), string(topo.PhasePromoting):
		return yellow
	}
	return red
}

func printStatus(w io.Writer, on bool, st api.Status) {
	for _, d := range st.Deployments {
		quorum := ""
		if d.Durability.Waits() {
			quorum = fmt.Sprintf(", %d of %d replicas acknowledge", d.AckReplicas, replicasOf(d))
		}
		if d.MaxLoss != (topo.Loss{}) {
			quorum = ", max-loss " + lossText(d.MaxLoss)
		}
		fmt.Fprintf(w, "%s  %s (%s%s)\n\n", paint(on, bold, d.Name), d.Mode, d.Durability, quorum)
		for _, s := range d.Shards {
			printShard(w, on, s)
		}
		if len(d.Proxies) > 0 {
			rows := [][]cell{{{text: "PROXY"}, {text: "READ-WRITE"}, {text: "READ-ONLY"}, {text: "PID"}}}
			for _, p := range d.Proxies {
				rows = append(rows, []cell{{text: p.Member}, {text: p.Addr}, {text: orDash(p.ReadonlyAddr)}, {text: fmt.Sprint(p.PID)}})
			}
			table(w, on, rows)
			fmt.Fprintln(w)
		}
	}
	rows := [][]cell{{{text: "MEMBER"}, {text: "STATE"}, {text: "STORE"}, {text: "SENTINEL"}, {text: "API"}, {text: "VERSION"}}}
	for _, m := range st.Members {
		rows = append(rows, []cell{{text: m.ID}, memberState(m.Alive, m.Controller), {text: orDash(m.StoreAddr)}, {text: orDash(m.SentinelAddr)}, {text: orDash(m.APIAddr)}, {text: orDash(m.Version)}})
	}
	table(w, on, rows)
	if st.Address != nil {
		printAddress(w, on, *st.Address)
	}
	if st.Store != nil {
		printStore(w, on, *st.Store)
	}
	if len(st.Problems) > 0 {
		fmt.Fprintln(w)
		for _, p := range st.Problems {
			fmt.Fprintf(w, "%s %s\n", paint(on, yellow, "!"), p)
		}
	}
}

// printAddress shows who holds the floating address.
func printAddress(w io.Writer, on bool, a api.AddressStatus) {
	holder, why := cell{a.Holder, green}, a.Why
	switch {
	case a.Leaving != "":
		holder = cell{"nobody: " + a.Leaving + " lets go of it", yellow}
	case a.Holder == "":
		holder = cell{"nobody", red}
	case a.Stale:
		holder = cell{a.Holder + " (known last)", yellow}
	}
	fmt.Fprintln(w)
	table(w, on, [][]cell{{{text: "ADDRESS"}, {text: "INTERFACE"}, {text: "HOLDER"}, {text: "EPOCH"}, {text: "WHY"}}, {{text: a.IP}, {text: a.Interface}, holder, {text: fmt.Sprint(a.Epoch)}, {text: orDash(why)}}})
}

// printStore shows a store outside as the member that answered sees it.
func printStore(w io.Writer, on bool, h coord.Health) {
	rows := [][]cell{{{text: "STORE"}, {text: "ENDPOINT"}, {text: "STATE"}, {text: "PREFIX"}}}
	for _, e := range h.Endpoints {
		state := cell{"up", green}
		if !e.Up {
			state = cell{"no answer", red}
		}
		rows = append(rows, []cell{{text: h.Kind}, {text: e.Addr}, state, {text: h.Prefix}})
	}
	fmt.Fprintln(w)
	table(w, on, rows)
}

func printShard(w io.Writer, on bool, s api.ShardStatus) {
	c := green
	if s.Phase != topo.PhaseServing {
		c = yellow
	}
	primary := string(s.Primary)
	if s.Phase != topo.PhaseServing {
		primary = "none"
	}
	fmt.Fprintf(w, "%s  phase %s  epoch %d  primary %s", s.ID, paint(on, c, string(s.Phase)), s.Epoch, primary)
	if s.Slots != "" {
		fmt.Fprintf(w, "  slots %s", shortened(s.Slots))
	}
	if s.Paused != nil {
		fmt.Fprintf(w, "  %s", paint(on, yellow, "automation paused"))
	}
	if s.Intent != nil {
		fmt.Fprintf(w, "  %s pending", s.Intent.Kind)
	}
	if s.Alone != "" {
		fmt.Fprintf(w, "  %s", paint(on, red, "ONE COPY"))
	}
	fmt.Fprintln(w)
	if s.Change != nil {
		fmt.Fprintf(w, "%s\n", paint(on, yellow, growing(*s.Change)))
	}
	rows := [][]cell{{{text: "NODE"}, {text: "ADDRESS"}, {text: "STATE"}, {text: "ROLE"}, {text: "OFFSET"}, {text: "LAG"}, {text: "VOTES"}, {text: "PID"}, {text: "AGENT"}}}
	for _, n := range s.Nodes {
		lag := "-"
		if n.Lag != nil {
			lag = count(*n.Lag)
		}
		votes := "no"
		if n.Enrolled {
			votes = "yes"
		}
		rows = append(rows, []cell{
			{text: string(n.ID)}, {text: n.Addr}, {n.State, stateColour(n.State)}, {text: orDash(string(n.Role))}, {text: count(n.Offset)},
			{text: lag}, {text: votes}, {text: fmt.Sprint(n.PID)}, {text: fmt.Sprint(n.AgentPID)},
		})
	}
	table(w, on, rows)
	fmt.Fprintln(w)
}

// shortened is a list of ranges as long as a line has room for; --json has all of it.
func shortened(ranges string) string {
	parts := strings.Split(ranges, ",")
	const most = 6
	if len(parts) <= most {
		return ranges
	}
	return fmt.Sprintf("%s and %d ranges more", strings.Join(parts[:most], ","), len(parts)-most)
}

// replicasOf is how many replicas a shard has that has fewest.
func replicasOf(d api.DeploymentStatus) int {
	least := 0
	for i, s := range d.Shards {
		if n := max(len(s.Nodes)-1, 0); i == 0 || n < least {
			least = n
		}
	}
	return least
}

func nodesOf(d api.DeploymentStatus) int {
	n := 0
	for _, s := range d.Shards {
		n += len(s.Nodes)
	}
	return n
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (e *env) watch() *cobra.Command {
	var every time.Duration
	c := e.asks(&cobra.Command{
		Use: "watch", Short: "Show the status again and again",
		Long: "Show the status again and again until interrupted. Without a terminal one status follows the other.",
		RunE: func(c *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return fail(ExitUsage, "--every %s: use at least 100ms", every)
			}
			client, err := e.client()
			if err != nil {
				return err
			}
			defer client.Close()
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				e.frame(c.Context(), client)
				select {
				case <-c.Context().Done():
					return nil
				case <-tick.C:
				}
			}
		},
	})
	c.Flags().DurationVar(&every, "every", 500*time.Millisecond, "how often")
	return c
}

// frame draws one status over the last one. A member that does not answer is a frame, too: it may come back.
func (e *env) frame(ctx context.Context, client *api.Client) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	st, err := client.Status(ctx)
	on := coloured(e.out)
	if isTerminal(e.out) {
		fmt.Fprint(e.out, "\x1b[H\x1b[2J")
	}
	fmt.Fprintf(e.out, "%s\n\n", paint(on, dim, time.Now().Format("15:04:05.0")+"  (Ctrl-C ends)"))
	if err != nil {
		fmt.Fprintf(e.out, "%s %v\n", paint(on, red, "!"), err)
		return
	}
	printStatus(e.out, on, st)
}
