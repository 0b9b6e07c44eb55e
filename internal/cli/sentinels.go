// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"redoubt/internal/config"
	"redoubt/internal/resp"
)

// watched is one primary, and its replicas, as a Sentinel describes them.
type watched struct {
	name    string
	primary string
	others  []string
}

// askSentinels puts into the shards what a Sentinel knows of their servers. The pool may be out of date: whichever of the servers
// it names, the one that the Sentinel calls the primary is it.
func (e *env) askSentinels(ctx context.Context, f adoptFlags, shards []config.AdoptedShard) error {
	known, err := firstSentinel(ctx, f.sentinels, f.password)
	if err != nil {
		return fail(ExitFailed, "ask the Sentinels: %w", err)
	}
	for i, s := range shards {
		at := slices.IndexFunc(known, func(w watched) bool { return w.primary == s.Primary || slices.Contains(w.others, s.Primary) })
		if at < 0 {
			return fail(ExitFailed, "no Sentinel that was asked watches %s of the pool: leave --sentinel out to adopt the servers without replicas", s.Primary)
		}
		shards[i].Primary, shards[i].Others = known[at].primary, known[at].others
	}
	return nil
}

func firstSentinel(ctx context.Context, addrs []string, password string) ([]watched, error) {
	var failures []error
	for _, addr := range addrs {
		known, err := askSentinel(ctx, addr, password)
		if err == nil {
			return known, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", addr, err))
	}
	return nil, errors.Join(failures...)
}

func askSentinel(ctx context.Context, addr, password string) ([]watched, error) {
	c, err := dialRedis(ctx, addr, password)
	if err != nil {
		return nil, err
	}
	defer c.close()
	primaries, err := c.maps("SENTINEL", "MASTERS")
	if err != nil {
		return nil, err
	}
	var all []watched
	for _, p := range primaries {
		if strings.Contains(p["flags"], "down") {
			return nil, fmt.Errorf("the primary of %s, %s:%s, is %s: adopt when it is well", p["name"], p["ip"], p["port"], p["flags"])
		}
		w := watched{name: p["name"], primary: net.JoinHostPort(p["ip"], p["port"])}
		if w.others, err = c.replicasOf(ctx, w.name); err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	return all, nil
}

// replicaPatience is how long a replica that the Sentinel has no connection to may take to get one: it has one about a second after
// it has heard of the replica.
const replicaPatience = 5 * time.Second

// replicasOf returns the addresses of a primary's replicas, in order. One that is not well is an error: a server that is left out
// would go on as a replica that nobody looks after.
func (r *redisConn) replicasOf(ctx context.Context, name string) ([]string, error) {
	for deadline := time.Now().Add(replicaPatience); ; {
		replicas, err := r.maps("SENTINEL", "REPLICAS", name)
		if err != nil {
			return nil, err
		}
		var all []string
		for _, p := range replicas {
			at, flags := net.JoinHostPort(p["ip"], p["port"]), p["flags"]
			all = append(all, at)
			if strings.Contains(flags, "down") || strings.Contains(flags, "disconnected") {
				err = fmt.Errorf("replica %s is %s: start it, or have the Sentinels forget it (SENTINEL RESET %s)", at, flags, name)
			}
		}
		slices.Sort(all)
		if err == nil || time.Now().After(deadline) {
			return all, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// maps asks for a list of descriptions, each a flat list of names and values.
func (r *redisConn) maps(args ...string) ([]map[string]string, error) {
	frame, err := r.do(args...)
	if err != nil {
		return nil, err
	}
	if frame[0] == '-' {
		return nil, fmt.Errorf("%s: %s", strings.Join(args, " "), resp.Text(frame))
	}
	var all []map[string]string
	for _, item := range resp.Elements(frame, nil) {
		m, fields := map[string]string{}, resp.Elements(item, nil)
		for i := 0; i+1 < len(fields); i += 2 {
			m[string(resp.Text(fields[i]))] = string(resp.Text(fields[i+1]))
		}
		all = append(all, m)
	}
	return all, nil
}
