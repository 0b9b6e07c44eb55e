// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/slots"
)

// Endpoint is where servers or proxies listen, and how to log in there.
type Endpoint struct {
	Addrs    []string // host:port or unix:/path: the first that answers
	User     string
	Password string
	TLS      bool
}

// Source says where keys come from. Who is primary is asked anew whenever it is connected to.
type Source struct {
	At     Endpoint
	Master string // At are Sentinels, and this is the name that they know the servers by
	// SentinelPassword is theirs; At.Password is the servers'.
	SentinelPassword string
	// Owner tells which of At.Addrs has a key: they are a pool of servers of which each has a part. nil: one server, or a cluster.
	Owner func(key []byte) int
	DB    int // only this database; -1: all
}

// origin is one server that has keys.
type origin struct {
	addr     string
	replicas []string
	owns     func(key []byte) bool
	layout   string // of a cluster: which slots belong together; empty outside of one
}

const dialWithin = 5 * time.Second

// dial connects to one address.
func (e Endpoint) dial(ctx context.Context, addr, name string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	network, at := "tcp", addr
	if path, is := strings.CutPrefix(addr, "unix:"); is {
		network, at = "unix", path
	}
	nc, err := (&net.Dialer{}).DialContext(ctx, network, at)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	if e.TLS {
		host, _, _ := net.SplitHostPort(addr)
		secure := tls.Client(nc, &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, fmt.Errorf("connect to %s by TLS: %w", addr, err)
		}
		nc = secure
	}
	l := &link{nc: nc, r: bufio.NewReaderSize(nc, 64<<10), addr: addr}
	switch {
	case e.User != "":
		l.add("AUTH", e.User, e.Password)
	case e.Password != "":
		l.add("AUTH", e.Password)
	}
	if name != "" {
		l.add("CLIENT", "SETNAME", name)
	}
	if l.adds == 0 {
		return l, nil
	}
	if _, err := l.must(ctx); err != nil {
		l.close()
		return nil, fmt.Errorf("log in: %w", err)
	}
	return l, nil
}

// any connects to the first address that answers.
func (e Endpoint) any(ctx context.Context, name string) (*link, error) {
	var failures []error
	for _, addr := range e.Addrs {
		l, err := e.dial(ctx, addr, name)
		if err == nil {
			return l, nil
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// origins asks who has the keys now.
func (s Source) origins(ctx context.Context) ([]origin, error) {
	if s.Owner != nil {
		return s.pool(ctx)
	}
	at := s.At
	if s.Master != "" {
		addr, err := s.sentinels(ctx)
		if err != nil {
			return nil, err
		}
		at.Addrs = []string{addr}
	}
	l, err := at.any(ctx, "")
	if err != nil {
		return nil, err
	}
	defer l.close()
	rep, err := l.ask(ctx, "INFO")
	if err != nil {
		return nil, err
	}
	info := fields(rep.body)
	if info["cluster_enabled"] == "1" {
		return clusterOrigins(ctx, l)
	}
	if info["role"] != "master" {
		return nil, fmt.Errorf("%s is a replica of %s: name its primary", l.addr, net.JoinHostPort(info["master_host"], info["master_port"]))
	}
	return []origin{{addr: l.addr, replicas: replicasOf(info)}}, nil
}

// pool are servers of which each has the keys that Owner says.
func (s Source) pool(ctx context.Context) ([]origin, error) {
	var all []origin
	for i, addr := range s.At.Addrs {
		l, err := s.At.dial(ctx, addr, "")
		if err != nil {
			return nil, err
		}
		rep, err := l.ask(ctx, "INFO", "replication")
		l.close()
		if err != nil {
			return nil, err
		}
		info := fields(rep.body)
		if info["role"] != "master" {
			return nil, fmt.Errorf("%s of the pool is a replica", addr)
		}
		all = append(all, origin{addr: addr, replicas: replicasOf(info), owns: func(key []byte) bool { return s.Owner(key) == i }})
	}
	return all, nil
}

// replicasOf reads the lines slave0:ip=…,port=…,state=… of INFO.
func replicasOf(info map[string]string) (addrs []string) {
	for i := 0; ; i++ {
		line, ok := info["slave"+strconv.Itoa(i)]
		if !ok {
			return addrs
		}
		m := map[string]string{}
		for f := range strings.SplitSeq(line, ",") {
			k, v, _ := strings.Cut(f, "=")
			m[k] = v
		}
		if m["ip"] != "" && m["port"] != "" && m["port"] != "0" {
			addrs = append(addrs, net.JoinHostPort(m["ip"], m["port"]))
		}
	}
}

// sentinels asks who is primary.
func (s Source) sentinels(ctx context.Context) (string, error) {
	l, err := Endpoint{Addrs: s.At.Addrs, Password: s.SentinelPassword}.any(ctx, "")
	if err != nil {
		return "", fmt.Errorf("ask the Sentinels: %w", err)
	}
	defer l.close()
	rep, err := l.ask(ctx, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", s.Master)
	if err != nil {
		return "", err
	}
	if len(rep.items) != 2 {
		return "", fmt.Errorf("the Sentinel at %s knows no master %q", l.addr, s.Master)
	}
	return net.JoinHostPort(string(rep.items[0].body), string(rep.items[1].body)), nil
}

// clusterOrigins are the primaries that have slots, as one node knows them.
func clusterOrigins(ctx context.Context, l *link) ([]origin, error) {
	rep, err := l.ask(ctx, "CLUSTER", "NODES")
	if err != nil {
		return nil, err
	}
	layout, err := layoutOf(string(rep.body))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.addr, err)
	}
	var all []origin
	replicas := map[string][]string{}
	ids := []string{}
	for line := range strings.Lines(string(rep.body)) {
		f := strings.Fields(line)
		if len(f) < 8 || strings.Contains(f[2], "noaddr") {
			continue
		}
		addr := nodeAddr(f[1], l.addr)
		if !strings.Contains(f[2], "master") {
			replicas[f[3]] = append(replicas[f[3]], addr)
			continue
		}
		if len(f) == 8 {
			continue
		}
		ranges, err := slots.ParseRanges(strings.Join(f[8:], ","))
		if err != nil {
			return nil, fmt.Errorf("read CLUSTER NODES of %s: %w", l.addr, err)
		}
		has := func(key []byte) bool {
			slot := slots.Of(key)
			return slices.ContainsFunc(ranges, func(r slots.Range) bool { return r.From <= slot && slot <= r.To })
		}
		all, ids = append(all, origin{addr: addr, owns: has, layout: layout}), append(ids, f[0])
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no node of the cluster of %s has slots", l.addr)
	}
	for i, id := range ids {
		all[i].replicas = replicas[id]
	}
	return all, nil
}

// layoutOf says which slots belong together, whoever has them: a failover changes nothing about it. Slots on their way are an error.
func layoutOf(nodes string) (string, error) {
	var parts []string
	for line := range strings.Lines(nodes) {
		f := strings.Fields(line)
		if len(f) <= 8 {
			continue
		}
		for _, word := range f[8:] {
			if strings.HasPrefix(word, "[") {
				return "", fmt.Errorf("slots are on their way between the source's nodes (%s): migrate when that is over", word)
			}
		}
		parts = append(parts, strings.Join(f[8:], ","))
	}
	slices.Sort(parts)
	return strings.Join(parts, " "), nil
}

// nodeAddr reads "ip:port@bus,hostname"; a node that does not know its own address yet has none.
func nodeAddr(text, asked string) string {
	addr, _, _ := strings.Cut(text, "@")
	host, port, err := net.SplitHostPort(addr)
	if err == nil && host == "" {
		host, _, _ = net.SplitHostPort(asked)
		return net.JoinHostPort(host, port)
	}
	return addr
}
