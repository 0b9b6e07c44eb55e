// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"redoubt/internal/config"
	"redoubt/internal/mover"
	"redoubt/internal/ring"
)

// source reads --from: a URL, an address, or the file of a twemproxy.
func source(f migrateFlags) (mover.Source, error) {
	if f.from == "" {
		return mover.Source{}, fail(ExitUsage, "--from says where the keys come from, for example redis://10.0.0.1:6379")
	}
	if st, err := os.Stat(f.from); err == nil && st.Mode().IsRegular() {
		return poolSource(f)
	}
	at, scheme, path, err := endpoint(f.from, "REDOUBT_SOURCE_PASSWORD")
	if err != nil {
		return mover.Source{}, fail(ExitUsage, "--from %w", err)
	}
	s := mover.Source{At: at, DB: -1, SentinelPassword: f.sentinel}
	switch {
	case scheme == "sentinel" && path == "":
		return s, fail(ExitUsage, "--from sentinel://host:port/name: the name by which the Sentinels know the primary is missing")
	case scheme == "sentinel":
		s.Master = path
	case path != "":
		if s.DB, err = strconv.Atoi(path); err != nil || s.DB < 0 {
			return s, fail(ExitUsage, "--from: %q is not the number of a database", path)
		}
	}
	return s, nil
}

// endpoint reads redis://user:password@host:port,host:port/path, or addresses alone. The error does not repeat the text: it may hold a password.
func endpoint(text, env string) (at mover.Endpoint, scheme, path string, err error) {
	scheme, rest, isURL := strings.Cut(text, "://")
	if !isURL {
		scheme, rest = "redis", text
	}
	switch scheme {
	case "redis", "rediss", "sentinel":
	default:
		return at, "", "", errors.New(`begins with none of "redis://", "rediss://" and "sentinel://"`)
	}
	at.TLS = scheme == "rediss"
	if login, hosts, ok := cutLastAt(rest); ok {
		rest = hosts
		user, password, both := strings.Cut(login, ":")
		if at.User, err = url.PathUnescape(user); err == nil && both {
			at.Password, err = url.PathUnescape(password)
		}
		if err != nil {
			return at, "", "", errors.New("has a user or password that is not written as in a URL")
		}
	}
	if at.Password == "" {
		at.Password = os.Getenv(env)
	}
	hosts, path, _ := strings.Cut(rest, "/")
	for addr := range strings.SplitSeq(hosts, ",") {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return at, "", "", errors.New("names no host:port")
		}
		at.Addrs = append(at.Addrs, addr)
	}
	if scheme == "redis" && len(at.Addrs) > 1 && isURL && path != "" {
		return at, "", "", errors.New("names several servers and a database: a cluster, whose nodes they are, has only one")
	}
	return at, scheme, path, nil
}

func cutLastAt(text string) (before, after string, found bool) {
	if i := strings.LastIndexByte(text, '@'); i >= 0 {
		return text[:i], text[i+1:], true
	}
	return "", text, false
}

// poolSource is the pool of a nutcracker.yml. Keys that a server has and the pool does not look for there are left behind.
func poolSource(f migrateFlags) (mover.Source, error) {
	data, err := os.ReadFile(f.from)
	if err != nil {
		return mover.Source{}, fail(ExitUsage, "read the pool: %w", err)
	}
	pools, err := config.ParseTwemproxy(data, f.from)
	if err != nil {
		return mover.Source{}, err
	}
	p, err := choosePool(pools, f.pool)
	if err != nil {
		return mover.Source{}, err
	}
	if !p.Redis {
		return mover.Source{}, fail(ExitUsage, "pool %s is one of memcached servers", p.Name)
	}
	r, err := ring.New(p.Ring())
	if err != nil {
		return mover.Source{}, fail(ExitUsage, "pool %s: %w", p.Name, err)
	}
	if p.Distribution == ring.Random {
		return mover.Source{}, fail(ExitUsage, "pool %s spreads keys at random: there is no one place that a key has", p.Name)
	}
	s := mover.Source{DB: p.RedisDB, Owner: func(key []byte) int { return r.Shard(key, 0) }, At: mover.Endpoint{Password: p.RedisAuth}}
	for _, server := range p.Servers {
		s.At.Addrs = append(s.At.Addrs, server.Addr())
	}
	return s, nil
}

// target reads --to: addresses, a URL, or the directory of a deployment.
func target(to string) (mover.Endpoint, error) {
	if to == "" {
		return mover.Endpoint{}, fail(ExitUsage, "--to says where the keys go: a proxy's address, or the directory of a deployment of `redoubt up`")
	}
	if p, err := readPlan(to); err == nil {
		at := mover.Endpoint{Password: os.Getenv("REDOUBT_TARGET_PASSWORD")}
		for _, m := range p.Members {
			if m.Proxy != "" {
				at.Addrs = append(at.Addrs, m.Proxy)
			}
		}
		return at, nil
	} else if !errors.Is(err, fs.ErrNotExist) && !strings.Contains(to, ":") {
		return mover.Endpoint{}, err
	}
	at, scheme, path, err := endpoint(to, "REDOUBT_TARGET_PASSWORD")
	if err == nil && (scheme == "sentinel" || path != "") {
		err = errors.New("names proxies, or a deployment's directory, without a database")
	}
	if err != nil {
		if _, statErr := os.Stat(to); statErr == nil {
			return at, fail(ExitUsage, "there is no deployment in %s (no %s)", to, filepath.Join(to, planFile))
		}
		return at, fail(ExitUsage, "--to %w", err)
	}
	return at, nil
}
