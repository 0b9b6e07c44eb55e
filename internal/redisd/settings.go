// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"redoubt/internal/redis"
)

// backlogMin is the least repl-backlog-size (SAFETY C5).
const backlogMin = 64 << 20

const minReplicas = "min-replicas-to-write"

// demand is one setting that a server must have.
type demand struct {
	name  string
	value string                   // what it must be, and what Configure sets
	holds func(actual string) bool // nil: equal to value
	since int                      // Redis-compatible version that has it
	lies  bool                     // SAFETY A10: a server without it would acknowledge what it does not hold
}

func (d demand) ok(actual string) bool {
	if d.holds != nil {
		return d.holds(actual)
	}
	return actual == d.value
}

// demands are the settings of SAFETY A10, A3 and C5.
func demands(disk bool) []demand {
	notEmptyDB := func(v string) bool { return v == "disabled" || v == "swapdb" }
	bigEnough := func(v string) bool { n, _ := strconv.ParseInt(v, 10, 64); return n >= backlogMin }
	all := []demand{
		{name: "replica-read-only", value: "yes", lies: true},
		{name: "replica-ignore-maxmemory", value: "yes", lies: true},
		{name: "propagation-error-behavior", value: "panic-on-replicas", since: 700, lies: true},
		{name: "replica-ignore-disk-write-errors", value: "no", since: 700, lies: true},
		{name: "repl-diskless-load", value: "disabled", holds: notEmptyDB, lies: true},
		{name: "repl-backlog-ttl", value: "0"},
		{name: "repl-backlog-size", value: strconv.Itoa(backlogMin), holds: bigEnough},
	}
	if disk { // a server that syncs once a second may say too early that it has (SAFETY A12), and one that waits for a rewrite says nothing
		all = append(all, demand{name: appendFsync, value: "always", lies: true}, demand{name: noFsyncOnRewrite, value: "no", lies: true})
	}
	return all
}

// demands are those of this server.
func (n *Node) demands(disk bool) []demand {
	if n.cluster == nil {
		return demands(disk)
	}
	all := append(demands(disk), clusterDemands()...)
	if n.managed == nil { // what a managed one has on its command line
		all = append(all, attachedDemands()...)
	}
	return all
}

// watchedSettings are the names that an observation needs.
func (n *Node) watchedSettings() []string {
	names := []string{"stop-writes-on-bgsave-error", "save", minReplicas, "min-replicas-max-lag", "appendonly"}
	for _, d := range n.demands(true) {
		names = append(names, d.name)
	}
	return names
}

// TouchedSettings are the names of the settings that a driver may change on an attached server, but for who may replicate.
func TouchedSettings() []string {
	names := []string{minReplicas, "min-replicas-max-lag"}
	for _, d := range demands(true) {
		names = append(names, d.name)
	}
	return names
}

// configGets asks for each name with its own command: CONFIG GET takes several names only from Redis 7.0.
func configGets(names []string) [][]string {
	cmds := make([][]string, 0, len(names))
	for _, n := range names {
		cmds = append(cmds, []string{"CONFIG", "GET", n})
	}
	return cmds
}

func mergeConfig(reps []reply) (map[string]string, error) {
	m := map[string]string{}
	for _, r := range reps {
		if err := r.err(); err != nil {
			return nil, fmt.Errorf("read settings: %w", err)
		}
		for k, v := range r.pairs() {
			m[k] = v
		}
	}
	return m, nil
}

// violations names the settings that would make the server lie. A setting that the server must know and does not show
// counts as violated: it may have been hidden by rename-command or by an ACL.
func violations(cfg map[string]string, version int, demands []demand) []string {
	var out []string
	for _, d := range demands {
		if !d.lies || version < d.since {
			continue
		}
		if v, known := cfg[d.name]; !known {
			out = append(out, fmt.Sprintf("%s is not readable, must be %s", d.name, d.value))
		} else if !d.ok(v) {
			out = append(out, fmt.Sprintf("%s is %s, must be %s", d.name, v, d.value))
		}
	}
	slices.Sort(out)
	return out
}

// Configure applies what safety needs by CONFIG SET, reads it back, and changes nothing that already holds. It never
// writes a configuration file.
func (n *Node) Configure(ctx context.Context, s redis.Settings) error {
	c, err := n.ready(ctx)
	if err != nil {
		return fmt.Errorf("configure %s: %w", n.addr, err)
	}
	if n.managed != nil {
		n.managed.mendAOF(ctx, c)
	}
	return errors.Join(n.restoreDelay(ctx, c), n.settle(ctx, c, s), n.admit(ctx, c, s.Admit))
}

// settle is the part of Configure that is settings.
func (n *Node) settle(ctx context.Context, c *conn, s redis.Settings) error {
	version, err := n.versionOf(ctx, c)
	if err != nil {
		return fmt.Errorf("configure %s: %w", n.addr, err)
	}
	n.atLeast = s.MinReplicas
	want := append(n.demands(s.Disk), demand{name: minReplicas, value: strconv.Itoa(s.MinReplicas)})
	shut, err := n.isShut(ctx, c)
	if err != nil {
		return err
	}
	if shut { // it is a part of what keeps it closed
		want = slices.DeleteFunc(want, func(d demand) bool { return d.name == minReplicas })
	}
	if s.MinReplicas > 0 {
		want = append(want, demand{name: "min-replicas-max-lag", value: strconv.Itoa(max(1, s.MinReplicasMaxLag))})
	}
	want = append(want, n.syncing(s.Disk)...)
	want = append(want, n.undelayed()...)
	want = slices.DeleteFunc(want, func(d demand) bool { return version < d.since })
	wrong, err := n.differing(ctx, c, want)
	if err != nil {
		return err
	}
	n.disk = s.Disk
	if len(wrong) == 0 {
		return nil
	}
	for _, d := range wrong {
		reps, err := c.do(ctx, []string{"CONFIG", "SET", d.name, d.value})
		if err == nil {
			err = reps[0].err()
		}
		if err != nil {
			return fmt.Errorf("configure %s: set %s: %w", n.addr, d.name, err)
		}
	}
	n.forgetSettings()
	if wrong, err = n.differing(ctx, c, want); err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("configure %s: %s did not take the value %s", n.addr, wrong[0].name, wrong[0].value)
	}
	return nil
}

// undelayed is for a managed server whose agent died while it primed it.
func (n *Node) undelayed() []demand {
	if n.managed == nil || n.managed.o.syncDelay() == primeDelay {
		return nil
	}
	return []demand{{name: disklessDelay, value: n.managed.o.syncDelay(), holds: func(v string) bool { return v != primeDelay }}}
}

// differing returns the demands that the server does not meet now.
func (n *Node) differing(ctx context.Context, c *conn, want []demand) ([]demand, error) {
	names := make([]string, 0, len(want))
	for _, d := range want {
		names = append(names, d.name)
	}
	reps, err := c.do(ctx, configGets(names)...)
	if err != nil {
		return nil, fmt.Errorf("read settings of %s: %w", n.addr, err)
	}
	cfg, err := mergeConfig(reps)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(want), func(d demand) bool { return d.ok(cfg[d.name]) }), nil
}
