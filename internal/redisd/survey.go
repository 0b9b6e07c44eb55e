// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// surveyName is the connection of a survey in CLIENT LIST.
const surveyName = "redoubt-survey"

// Login is how servers of a cluster that is to be adopted, or handed back, are spoken to.
type Login struct{ Username, Password string }

// Survey is what a server that is not ours yet says about itself.
type Survey struct {
	Addr     string
	Version  string
	Number   int // Redis-compatible: major × 100 + minor
	RunID    string
	Role     topo.Role
	Pos      topo.Position
	Backlog  bool
	LinkUp   bool // of a replica
	Loading  bool
	Down     bool // it answers CLUSTERDOWN
	View     slots.Nodes
	Settings map[string]string // those of FoundSettings that it has
	Users    []string          // besides the default one
	NoSync   bool              // its default user may not replicate
}

// What decides about elections goes first when a cluster is taken over, and comes back last when it is handed back.
const (
	noFailover  = "cluster-replica-no-failover"
	noMigration = "cluster-allow-replica-migration"
)

// FoundSettings are the settings of a server that may change while it is ours: they are noted before, and put back afterwards.
func FoundSettings() []string {
	names := []string{noFailover, noMigration, minReplicas, "min-replicas-max-lag", "masteruser", "masterauth", pingPeriod}
	for _, d := range slices.Concat(demands(false), clusterDemands(), attachedDemands()) {
		if !slices.Contains(names, d.name) {
			names = append(names, d.name)
		}
	}
	return names
}

// SurveyServer asks one server, over a connection of its own.
func SurveyServer(ctx context.Context, addr string, l Login) (Survey, error) {
	names := FoundSettings()
	cmds := [][]string{{"INFO"}, {"CLUSTER", "INFO"}, clusterNodes(), {"ACL", "LIST"}}
	reps, err := tellServer(ctx, addr, l, append(cmds, configGets(names)...))
	if err != nil {
		return Survey{}, err
	}
	m, state := parseInfo(reps[0].text), parseInfo(reps[1].text)
	if m["cluster_enabled"] != "1" {
		return Survey{}, fmt.Errorf("%s is no member of a cluster (cluster-enabled no)", addr)
	}
	view, _, err := slots.Parse(reps[2].text)
	if err != nil {
		return Survey{}, fmt.Errorf("%s: %w", addr, err)
	}
	s := Survey{
		Addr: addr, Version: m.version(), Number: m.major(), RunID: m["run_id"], Role: m.role(), Pos: m.position(), Backlog: m["repl_backlog_active"] == "1",
		LinkUp: m.linkUp(), Loading: m.loading() || m.syncing(), Down: state[clusterState] != "ok", View: view, Settings: map[string]string{},
	}
	for _, line := range reps[3].words() {
		f := strings.Fields(line)
		switch {
		case len(f) < 2:
		case f[1] == "default":
			s.NoSync = slices.Contains(f, "-psync") || slices.Contains(f, "-sync")
		case f[1] != redis.ReplicationUser:
			s.Users = append(s.Users, f[1])
		}
	}
	slices.Sort(s.Users)
	for _, r := range reps[len(cmds):] {
		for k, v := range r.pairs() {
			s.Settings[k] = v
		}
	}
	return s, nil
}

// StopElections takes from a server's replicas the right to elect themselves, and to move to another shard, and reads it back.
func StopElections(ctx context.Context, addr string, l Login) error {
	return setAndRead(ctx, addr, l, [][2]string{{noFailover, "yes"}, {noMigration, "no"}})
}

// MayAdmit reports whether a server lets its access rules be changed, so that only who knows a secret may replicate. It gives nothing
// to anybody.
func MayAdmit(ctx context.Context, addr string, l Login) (bool, error) {
	_, err := tellServer(ctx, addr, l, [][]string{admissionProbe()})
	var refusal serverError
	if errors.As(err, &refusal) {
		return false, nil
	}
	return err == nil, err
}

// GiveBack puts back the settings that were found, but for those that decide about elections, and lets anybody with the deployment's
// password replicate, as before.
func GiveBack(ctx context.Context, addr string, l Login, found map[string]string) error {
	var pairs [][2]string
	for _, name := range FoundSettings() {
		if v, ok := found[name]; ok && name != noFailover && name != noMigration {
			pairs = append(pairs, [2]string{name, v})
		}
	}
	if _, err := tellServer(ctx, addr, l, [][]string{{"ACL", "SETUSER", "default", "+psync", "+sync"}, {"CLIENT", "UNPAUSE"}}); err != nil {
		return err
	}
	return setAndRead(ctx, addr, l, pairs)
}

// LetElect is the last step of handing a server back: our users go, and elections are as they were found.
func LetElect(ctx context.Context, addr string, l Login, found map[string]string) error {
	if _, err := tellServer(ctx, addr, l, [][]string{{"ACL", "DELUSER", redis.ReplicationUser, redis.MoverUser}}); err != nil {
		return err
	}
	var pairs [][2]string
	for _, name := range []string{noMigration, noFailover} {
		if v, ok := found[name]; ok {
			pairs = append(pairs, [2]string{name, v})
		}
	}
	return setAndRead(ctx, addr, l, pairs)
}

func setAndRead(ctx context.Context, addr string, l Login, pairs [][2]string) error {
	var cmds [][]string
	var names []string
	for _, p := range pairs {
		cmds = append(cmds, configSet(p[0], p[1]))
		names = append(names, p[0])
	}
	reps, err := tellServer(ctx, addr, l, append(cmds, configGets(names)...))
	if err != nil {
		return err
	}
	has, err := mergeConfig(reps[len(cmds):])
	if err != nil {
		return fmt.Errorf("%s: %w", addr, err)
	}
	for _, p := range pairs {
		if has[p[0]] != p[1] {
			return fmt.Errorf("%s: %s is %s and does not become %s", addr, p[0], has[p[0]], p[1])
		}
	}
	return nil
}

// tellServer sends a batch over a connection of its own; the first error reply is an error.
func tellServer(ctx context.Context, addr string, l Login, cmds [][]string) ([]reply, error) {
	c, err := dial(ctx, addr, append(authCommand(l.Username, l.Password), []string{"CLIENT", "SETNAME", surveyName}), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", redis.ErrUnanswered, err)
	}
	defer c.close()
	hello, err := c.setup.wait(ctx)
	if err == nil {
		err = firstError(hello)
	}
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", addr, err)
	}
	reps, err := c.do(ctx, cmds...)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", addr, err)
	}
	return reps, nil
}

// AdoptionChange is one setting that servers get when they are adopted.
type AdoptionChange struct{ Name, Found, Becomes string }

// AdoptionChanges lists what differs on some server from what it will be, in the order in which it is set.
func AdoptionChanges(surveys []Survey) []AdoptionChange {
	all := []demand{{name: noFailover, value: "yes"}, {name: noMigration, value: "no"}}
	for _, d := range slices.Concat(demands(false), clusterDemands(), attachedDemands()) {
		if d.name != noFailover && d.name != noMigration {
			all = append(all, d)
		}
	}
	all = append(all, demand{name: minReplicas, value: "0"})
	var out []AdoptionChange
	for _, d := range all {
		var found []string
		for _, s := range surveys {
			if v, known := s.Settings[d.name]; known && !d.ok(v) && !slices.Contains(found, v) {
				found = append(found, v)
			}
		}
		if len(found) > 0 {
			out = append(out, AdoptionChange{d.name, strings.Join(found, ", "), d.value})
		}
	}
	return out
}
