// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/topo"
)

func (e *env) shards() *cobra.Command {
	c := &cobra.Command{
		Use: "shard", Short: "Add a shard to a cluster or ring, or remove one",
		Long: "The shards of a cluster or ring (mode cluster, mode ring). Clients go on meanwhile.",
		RunE: needsVerb,
	}
	c.AddCommand(e.shardAdd(), e.shardRemove())
	return c
}

func (e *env) shardAdd() *cobra.Command {
	var nodes []string
	wait := changeWait
	c := e.orders(&cobra.Command{
		Use: "add [NAME]", Short: "Add a shard", Args: usageArgs(cobra.MaximumNArgs(1)),
		Long: "Add a shard: members that run start its servers, which join the cluster without slots. With `cluster: {rebalance: auto}` it is given\n" +
			"its part at once; otherwise `redoubt reshard` does that. In a ring the keys that are its part are copied to it while clients go on, and then it\njoins the ring: `redoubt reshard status`. For a deployment of `redoubt up` name and nodes follow from the others.\n\n" + exitCodes,
		RunE: func(c *cobra.Command, args []string) error {
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			return e.addShard(c.Context(), name, nodes, wait)
		},
	})
	c.Flags().StringArrayVar(&nodes, "node", nil, "MEMBER=ADDRESS[,bus-port=N][,host=NAME][,zone=NAME][,priority=N]; once for each node, the first primary first")
	c.Flags().DurationVar(&wait, "wait", wait, "how long to wait until it serves; 0s: not at all")
	return c
}

func (e *env) addShard(ctx context.Context, name string, nodes []string, wait time.Duration) error {
	s := api.ShardSpec{Name: name}
	var grown plan
	dir := ""
	if len(nodes) == 0 {
		var err error
		if grown, dir, s, err = e.grownPlan(name); err != nil {
			return err
		}
	}
	for i, text := range nodes {
		n, err := shardNode(text)
		if err != nil {
			return err
		}
		if n.Priority == 0 {
			n.Priority = i
		}
		s.Nodes = append(s.Nodes, n)
	}
	return e.propose(ctx, func(context.Context, *api.Client) (string, error) {
		text := fmt.Sprintf("Add shard %s:", s.Name)
		for _, n := range s.Nodes {
			text += fmt.Sprintf("\n  %s starts a server at %s", n.ID, n.Addr)
		}
		return text, nil
	}, func(ctx context.Context, client *api.Client) error {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		s.By = whoami()
		if err := client.AddShard(ask, s); err != nil {
			return err
		}
		if dir != "" {
			if err := grown.record(dir); err != nil {
				return err
			}
		}
		return e.awaitShard(ctx, client, s, wait)
	})
}

// shardNode reads MEMBER=ADDRESS,NAME=VALUE,…
func shardNode(text string) (n api.ShardNode, err error) {
	wrong := fail(ExitUsage, "--node %s: write MEMBER=ADDRESS[,bus-port=N][,host=NAME][,zone=NAME][,priority=N]", text)
	for i, part := range strings.Split(text, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return n, wrong
		}
		switch {
		case i == 0:
			n.ID, n.Addr = name, value
		case name == "bus-port":
			n.BusPort, err = strconv.Atoi(value)
		case name == "priority":
			n.Priority, err = strconv.Atoi(value)
		case name == "host":
			n.Host = value
		case name == "zone":
			n.Zone = value
		default:
			return n, wrong
		}
		if err != nil {
			return n, wrong
		}
	}
	return n, nil
}

// grownPlan lays out the next shard of a deployment made by `redoubt up`.
func (e *env) grownPlan(name string) (plan, string, api.ShardSpec, error) {
	s := api.ShardSpec{}
	dir := e.dir
	if dir == "" {
		dir = defaultDir
	}
	p, err := readPlan(dir)
	switch {
	case e.api != "", errors.Is(err, fs.ErrNotExist):
		return p, "", s, fail(ExitUsage, "name the shard's nodes with --node: only for a deployment made by `redoubt up` do they follow from the others")
	case err != nil:
		return p, "", s, err
	case p.Shards == 0:
		return p, "", s, fail(ExitUsage, "%s holds no deployment with mode cluster or ring: only those can have more shards", dir)
	case p.Shards >= shardsMax:
		return p, "", s, fail(ExitUsage, "there are %d shards: that is the most of a deployment made by `redoubt up`", p.Shards)
	}
	k := p.Shards
	if s.Name = fmt.Sprintf("s%d", k+1); name != "" && name != s.Name {
		return p, "", s, fail(ExitUsage, "the next shard of a deployment made by `redoubt up` is called %s", s.Name)
	}
	p.Shards++
	var data []int // members with servers
	for i, m := range p.Members {
		if m.Node != "" {
			data = append(data, i)
		}
	}
	var added []planMember
	for at, i := range data {
		m := &p.Members[i]
		m.Servers, m.Buses = slices.Clone(m.Servers), slices.Clone(m.Buses)
		rank := ((at-k)%len(data) + len(data)) % len(data)
		if rank > p.Replicas {
			m.Servers, m.Buses = append(m.Servers, ""), append(m.Buses, 0)
			continue
		}
		port := p.BasePort + 100 + 10*k + i
		addr, bus := net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), 0
		used := planMember{ID: m.ID, Proxy: addr}
		if p.Mode == "cluster" {
			bus = port + busAbove
			used.Sentinel = net.JoinHostPort("127.0.0.1", strconv.Itoa(bus))
		}
		m.Servers, m.Buses = append(m.Servers, addr), append(m.Buses, bus)
		s.Nodes = append(s.Nodes, api.ShardNode{ID: m.Node, Host: m.ID, Addr: addr, BusPort: bus, Priority: rank})
		added = append(added, used)
	}
	for _, m := range added {
		for _, addr := range []string{m.Proxy, m.Sentinel} {
			if addr == "" {
				continue
			}
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				return p, "", s, fail(ExitFailed, "port %s is in use: stop what uses it", addr)
			}
			_ = ln.Close()
		}
	}
	return p, dir, s, nil
}

// record writes what there is in the directory of the deployment, and leaves the members' files as they are: shards that came later are agreed.
func (p plan) record(dir string) error {
	path := filepath.Join(dir, planFile)
	b, err := p.encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("write the deployment: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the deployment: %w", err)
	}
	return nil
}

// awaitShard waits until a shard serves with all of its nodes.
func (e *env) awaitShard(ctx context.Context, client *api.Client, s api.ShardSpec, wait time.Duration) error {
	begun := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	state := "nothing is reported of it yet"
	for {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		st, err := client.Status(ask)
		cancel()
		if err == nil {
			for _, d := range st.Deployments {
				for _, sh := range d.Shards {
					if !strings.HasSuffix(sh.ID, "-"+s.Name) {
						continue
					}
					ready := sh.Phase == topo.PhaseServing
					state = string(sh.Phase)
					for _, n := range sh.Nodes {
						state += fmt.Sprintf(", %s %s", n.ID, n.State)
						ready = ready && (n.State == api.StateServing || n.State == api.StateFollowing)
					}
					if ready {
						if d.Mode == "ring" {
							fmt.Fprintf(e.out, "shard %s serves (%d ms)\n", sh.ID, time.Since(begun).Milliseconds())
							return e.followRing(ctx, client)
						}
						fmt.Fprintf(e.out, "shard %s serves, without slots yet (%d ms)\n", sh.ID, time.Since(begun).Milliseconds())
						return nil
					}
				}
			}
		}
		if time.Since(begun) > wait {
			if wait == 0 {
				return nil
			}
			return fail(ExitUnknown, "shard %s does not serve after %s (%s): see `redoubt status`", s.Name, wait, state)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// followRing waits until the ring has changed.
func (e *env) followRing(ctx context.Context, client *api.Client) error {
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	st, err := client.ReshardStatus(ask)
	if err != nil {
		return err
	}
	return e.followReshard(ctx, client, st, true)
}
