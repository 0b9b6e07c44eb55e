// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"redoubt/internal/api"
	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// handBackToSentinels makes them the ones that decide again. Each step can be repeated.
func (e *env) handBackToSentinels(ctx context.Context, plan string, wait time.Duration) error {
	a, st, err := e.newAdopter(ctx, plan)
	if err != nil {
		return err
	}
	defer a.client.Close()
	if st.State == topo.AdoptionWaiting {
		return a.unmuffle(ctx) // what an attempt that was cut short has left
	}
	if err := e.confirm(fmt.Sprintf("Hand %s back to Sentinels at %s.", a.rec.Name, a.addresses())); err != nil {
		return err
	}
	releasing, cancel := context.WithTimeout(ctx, armTime)
	defer cancel()
	if err := a.release(releasing); err != nil {
		return err
	}
	if st, err = a.client.Adoption(ctx); err != nil {
		return err
	}
	primary := ""
	for _, n := range a.rec.Nodes {
		if n.ID == st.Primary {
			primary = n.Addr
		}
	}
	if primary == "" {
		return fail(ExitFailed, "no primary is agreed on: see `redoubt status`")
	}
	if _, err := a.primary(ctx, primary); err != nil {
		return fail(ExitFailed, "%w; if Sentinels decide already, there is nothing left to hand back", err)
	}
	if err := a.restoreServers(ctx, primary); err != nil {
		return err
	}
	return a.restoreSentinels(ctx, primary, wait)
}

// release has the members let go, and waits until every one of them has.
func (a *adopter) release(ctx context.Context) error {
	if err := a.client.OrderAdoption(ctx, api.AdoptionOrder{State: topo.AdoptionReleased, By: whoami()}); err != nil {
		return err
	}
	why, silent := "", time.Time{}
	ok := poll(ctx, func() bool {
		st, err := a.client.Adoption(ctx)
		if err != nil {
			why = err.Error()
			return false
		}
		var holding, missing []string
		for _, m := range a.rec.Members {
			i := slices.IndexFunc(st.Members, func(x api.AdoptionMember) bool { return x.ID == m.ID })
			switch {
			case i < 0 && m.ID == string(st.Primary):
				holding = append(holding, m.ID+" (beside the primary) does not report")
			case i < 0:
				missing = append(missing, m.ID)
			case st.Members[i].State != topo.AdoptionReleased:
				holding = append(holding, m.ID+" is "+string(st.Members[i].State)+" "+st.Members[i].Problem)
			}
		}
		if why = strings.Join(append(holding, missing...), ", "); len(missing) == 0 || len(holding) > 0 {
			silent = time.Time{}
			return len(holding) == 0
		}
		if silent.IsZero() {
			silent = time.Now()
		}
		return time.Since(silent) > silentTime // it is down, or its agent has fenced its server by now: it has no lease
	})
	if !ok {
		return fail(ExitFailed, "not all members have let go: %s; see to them, and repeat this", why)
	}
	if why != "" {
		fmt.Fprintf(a.err, "note: these members do not report: %s; do not start them again\n", why)
	}
	a.done("the members have let go of the servers")
	return nil
}

// restoreServers gives the servers the settings that they had. Those that cannot be reached are named.
func (a *adopter) restoreServers(ctx context.Context, primary string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	order := []adoptedNode{}
	for _, n := range a.rec.Nodes { // the primary takes ordinary logins again before a replica presents one
		if n.Addr == primary {
			order = append([]adoptedNode{n}, order...)
		} else {
			order = append(order, n)
		}
	}
	for i, n := range order {
		err := a.restoreServer(ctx, n, primary)
		switch {
		case err != nil && i == 0:
			return fail(ExitFailed, "the primary at %s: %w", n.Addr, err)
		case err != nil:
			fmt.Fprintf(a.err, "note: the server at %s was not restored: %v\n", n.Addr, err)
		}
	}
	c, err := dialPeer(ctx, primary, a.servers)
	if err != nil {
		return fail(ExitFailed, "the primary at %s: %w", primary, err)
	}
	defer c.close()
	if err := c.must("ACL", "DELUSER", redis.ReplicationUser); err != nil {
		fmt.Fprintf(a.err, "note: the user %s stays at %s: %v\n", redis.ReplicationUser, primary, err)
	}
	a.done("the servers have their settings back; the primary is %s", primary)
	return nil
}

func (a *adopter) restoreServer(ctx context.Context, n adoptedNode, primary string) error {
	c, err := dialPeer(ctx, n.Addr, a.servers)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.must("ACL", "SETUSER", "default", "+psync", "+sync"); err != nil && n.Addr == primary {
		return err
	}
	s, err := describeServer(c)
	switch {
	case err != nil:
		return err
	case n.Addr != primary && s.role == "master":
		return errors.New("it is a primary, too: nothing was changed there; find out what it has, and have it follow")
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(n.Settings)) {
		errs = append(errs, c.must("CONFIG", "SET", name, n.Settings[name]))
	}
	auth := ""
	if n.MasterAuth {
		auth = a.servers
	}
	errs = append(errs, c.must("CONFIG", "SET", "masteruser", n.MasterUser), c.must("CONFIG", "SET", "masterauth", auth))
	if n.Addr != primary {
		host, port, _ := net.SplitHostPort(primary)
		if s.follows != primary {
			errs = append(errs, c.must("REPLICAOF", host, port))
		}
		_ = c.must("ACL", "DELUSER", redis.ReplicationUser)
	}
	_ = c.must("CONFIG", "REWRITE") // as a Sentinel does, where there is a file
	return errors.Join(errs...)
}

// restoreSentinels has every Sentinel watch the primary as before. They may have to be started first.
func (a *adopter) restoreSentinels(ctx context.Context, primary string, wait time.Duration) error {
	fmt.Fprintf(a.err, "start the Sentinels at %s now, if they do not run; waiting for %s at most\n", a.addresses(), wait)
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for _, s := range a.rec.Sentinels {
		var err error
		ok := poll(ctx, func() bool {
			err = a.watchAgain(ctx, s, primary)
			return err == nil
		})
		if !ok {
			return fail(ExitFailed, "the Sentinel at %s does not watch %s yet (%w): start it, and repeat this", s.Addr, a.rec.Name, err)
		}
		a.done("the Sentinel at %s watches %s again", s.Addr, a.rec.Name)
	}
	fmt.Fprintf(a.out, "%s is the Sentinels' again. The members do nothing; stop them, or take over again with --take-over\n", a.rec.Name)
	return nil
}

// watchAgain is MONITOR, and the settings that were recorded.
func (a *adopter) watchAgain(ctx context.Context, s oldSentinel, primary string) error {
	c, err := s.dial(ctx, a.gate)
	if err != nil {
		return err
	}
	defer c.close()
	m, err := c.masterOf(a.rec.Name)
	if err == nil && net.JoinHostPort(m["ip"], m["port"]) != primary {
		if err = c.must("SENTINEL", "REMOVE", a.rec.Name); err == nil {
			_, err = c.masterOf(a.rec.Name)
		}
	}
	if unknownMaster(err) {
		host, port, _ := net.SplitHostPort(primary)
		err = c.must("SENTINEL", "MONITOR", a.rec.Name, host, port, s.Settings["quorum"])
	}
	if err != nil {
		return err
	}
	settings := maps.Clone(s.Settings)
	if a.servers != "" {
		settings["auth-pass"] = a.servers
	}
	if a.rec.AuthUser != "" {
		settings["auth-user"] = a.rec.AuthUser
	}
	if err := c.setMaster(a.rec.Name, settings); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(a.rec.Scripts)) {
		if err := c.setMaster(a.rec.Name, map[string]string{k: a.rec.Scripts[k]}); err != nil && !strings.Contains(err.Error(), "deny-scripts-reconfig") && !strings.Contains(err.Error(), "is denied") {
			return err
		} else if err != nil {
			fmt.Fprintf(a.err, "note: the Sentinel at %s takes no scripts by command: put %s %s back into its file\n", s.Addr, k, a.rec.Scripts[k])
		}
	}
	return nil
}
