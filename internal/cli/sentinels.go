// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

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
		replicas, err := c.maps("SENTINEL", "REPLICAS", w.name)
		if err != nil {
			return nil, err
		}
		for _, r := range replicas {
			if !strings.Contains(r["flags"], "down") && !strings.Contains(r["flags"], "disconnected") {
				w.others = append(w.others, net.JoinHostPort(r["ip"], r["port"]))
			}
		}
		slices.Sort(w.others)
		all = append(all, w)
	}
	return all, nil
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
