// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"redoubt/internal/ring"
)

// TwemproxyPool is one pool of a nutcracker.yml: everything that can be said there, with twemproxy's defaults for the
// rest. A pool may speak memcached's protocol (Redis is false then), which Redoubt does not.
type TwemproxyPool struct {
	Name string
	Line int

	Listen             TwemproxyListen
	Hash               ring.Hash
	HashTag            string
	Distribution       ring.Distribution
	Timeout            int // milliseconds; -1: none
	Backlog            int
	ClientConnections  int // twemproxy reads it and ignores it
	Redis              bool
	RedisAuth          string
	RedisDB            int
	Preconnect         bool
	TCPKeepalive       bool
	ReusePort          bool
	AutoEjectHosts     bool
	ServerConnections  int
	ServerRetryTimeout int // milliseconds
	ServerFailureLimit int
	Servers            []TwemproxyServer
}

// TwemproxyListen is where a pool's clients connect: a host and port, or a Unix socket.
type TwemproxyListen struct {
	Host string
	Port int
	Path string // of the socket
	Mode uint32 // of the socket; 0: not stated
}

// TwemproxyServer is one server of a pool.
type TwemproxyServer struct {
	Host   string // or the path of its Unix socket
	Port   string // as it is written; "" for a socket
	Weight uint32
	Name   string // for placement: the given one, or what twemproxy makes of the address
	Line   int
}

// Addr is where the server listens: "host:port", or "unix:" and a path.
func (s TwemproxyServer) Addr() string {
	if s.Port == "" {
		return "unix:" + s.Host
	}
	return net.JoinHostPort(s.Host, strings.TrimLeft(s.Port, "0"))
}

// Ring is the placement of the pool's keys. Its nodes are the servers, in the order of the file.
func (p TwemproxyPool) Ring() ring.Spec {
	s := ring.Spec{Distribution: p.Distribution, Hash: p.Hash, HashTag: p.HashTag}
	for _, server := range p.Servers {
		s.Nodes = append(s.Nodes, ring.Node{Name: server.Name, Weight: server.Weight})
	}
	return s
}

// ParseTwemproxy reads a nutcracker.yml. The error is the Problems with everything that twemproxy refuses, each with its
// line, and with two things that it takes and should not: a server whose name is empty, permissions that are not octal.
// name is that of the file.
func ParseTwemproxy(data []byte, name string) ([]TwemproxyPool, error) {
	d := decoder{lines: map[string]int{}}
	var pools []TwemproxyPool
	if body := d.document(data, "a nutcracker.yml has a block for each pool"); body != nil {
		entries, ok := mapping(body)
		if !ok || len(entries) == 0 {
			d.problem(lineOf(body), "", "must have a block of settings for each pool")
		}
		for _, e := range entries {
			pools = append(pools, d.twemproxyPool(e))
		}
		d.twemproxyAddresses(pools)
	}
	if len(d.problems) > 0 {
		return nil, d.of(name)
	}
	return pools, nil
}

// twemproxyAddresses refuses two pools at one address.
func (d *decoder) twemproxyAddresses(pools []TwemproxyPool) {
	taken := map[TwemproxyListen]string{}
	for _, p := range pools {
		at := p.Listen
		at.Mode = 0
		if other, ok := taken[at]; ok && at != (TwemproxyListen{}) {
			d.problem(p.Line, p.Name+".listen", "pool %s listens there, too", other)
		}
		taken[at] = p.Name
	}
}

func (d *decoder) twemproxyPool(e *ast.MappingValueNode) TwemproxyPool {
	p := TwemproxyPool{
		Name: e.Key.GetToken().Value, Line: lineOf(e.Key),
		Hash: ring.FNV1ax64, Distribution: ring.Ketama, Timeout: -1, Backlog: 512, ServerConnections: 1, ServerRetryTimeout: 30000, ServerFailureLimit: 2,
	}
	entries, ok := mapping(e.Value)
	if !ok {
		d.problem(p.Line, p.Name, "must be a block of settings")
		return p
	}
	settings, seen := p.settings(), map[string]bool{}
	for _, e := range entries {
		key, line := e.Key.GetToken().Value, lineOf(e.Key)
		at := join(p.Name, key)
		seen[key] = true
		if key == "servers" {
			p.Servers = d.twemproxyServers(e.Value, at)
			continue
		}
		set := settings[key]
		if set == nil {
			d.problem(line, at, "twemproxy has no such setting")
			continue
		}
		text, ok := scalarText(e.Value)
		if tok := e.Value.GetToken(); !ok || text == "" || tok.Type == token.ImplicitNullType {
			d.problem(line, at, "must have one value; braces need quotes")
			continue
		}
		if err := set(text); err != nil {
			d.problem(line, at, "%v", err)
		}
	}
	for _, key := range []string{"listen", "servers"} {
		if !seen[key] {
			d.problem(p.Line, join(p.Name, key), "is missing")
		}
	}
	if p.RedisAuth != "" && !p.Redis {
		d.problem(p.Line, join(p.Name, "redis_auth"), "is only valid with redis: true")
	}
	return p
}

// settings are the keys of a pool, but for its servers, with what sets each.
func (p *TwemproxyPool) settings() map[string]func(string) error {
	number := func(to *int) func(string) error {
		return func(text string) (err error) { *to, err = twemproxyNumber(text); return err }
	}
	boolean := func(to *bool) func(string) error {
		return func(text string) error {
			*to = text == "true"
			if text != "true" && text != "false" {
				return fmt.Errorf("%q is not true or false", text)
			}
			return nil
		}
	}
	return map[string]func(string) error{
		"listen": func(text string) (err error) { p.Listen, err = twemproxyListen(text); return err },
		"hash": func(text string) error {
			p.Hash = ring.Hash(text)
			return oneOf(p.Hash, ring.Hashes(ring.Ketama))
		},
		"distribution": func(text string) error {
			p.Distribution = ring.Distribution(text)
			return oneOf(p.Distribution, []ring.Distribution{ring.Ketama, ring.Modula, ring.Random})
		},
		"hash_tag": func(text string) error {
			if p.HashTag = text; len(text) != 2 {
				return fmt.Errorf("%q is not two characters", text)
			}
			return nil
		},
		"server_connections": func(text string) (err error) {
			if p.ServerConnections, err = twemproxyNumber(text); err == nil && p.ServerConnections == 0 {
				return errors.New("must not be 0")
			}
			return err
		},
		"redis_auth":           func(text string) error { p.RedisAuth = text; return nil },
		"timeout":              number(&p.Timeout),
		"backlog":              number(&p.Backlog),
		"client_connections":   number(&p.ClientConnections),
		"redis_db":             number(&p.RedisDB),
		"server_retry_timeout": number(&p.ServerRetryTimeout),
		"server_failure_limit": number(&p.ServerFailureLimit),
		"redis":                boolean(&p.Redis),
		"tcpkeepalive":         boolean(&p.TCPKeepalive),
		"reuseport":            boolean(&p.ReusePort),
		"preconnect":           boolean(&p.Preconnect),
		"auto_eject_hosts":     boolean(&p.AutoEjectHosts),
	}
}

func oneOf[T ~string](v T, all []T) error {
	if slices.Contains(all, v) {
		return nil
	}
	return fmt.Errorf("%q is not one of %v", string(v), all)
}

func (d *decoder) twemproxyServers(n ast.Node, path string) []TwemproxyServer {
	list, ok := n.(*ast.SequenceNode)
	if !ok || len(list.Values) == 0 {
		d.problem(lineOf(n), path, "must be a list of servers: start each with \"- \"")
		return nil
	}
	var servers []TwemproxyServer
	names := map[string]bool{}
	for i, v := range list.Values {
		at := fmt.Sprintf("%s[%d]", path, i)
		text, ok := scalarText(v)
		if !ok {
			d.problem(lineOf(v), at, "must be host:port:weight, and a name after a space if there is one")
			continue
		}
		s, err := twemproxyServer(text)
		if err != nil {
			d.problem(lineOf(v), at, "%v", err)
			continue
		}
		if names[s.Name] {
			d.problem(lineOf(v), at, "a second server with the name %q", s.Name)
		}
		names[s.Name] = true
		s.Line = lineOf(v)
		servers = append(servers, s)
	}
	return servers
}

// twemproxyServer reads "host:port:weight name" or "/path:weight name" from its end, as twemproxy does.
func twemproxyServer(text string) (TwemproxyServer, error) {
	bad := fmt.Errorf("%q is not host:port:weight or /path:weight, with a name after a space if there is one", text)
	rest, name, named := cutLast(text, " ")
	if named && name == "" {
		return TwemproxyServer{}, bad
	}
	rest, weight, ok := cutLast(rest, ":")
	if !ok {
		return TwemproxyServer{}, bad
	}
	s := TwemproxyServer{Host: rest}
	w, err := twemproxyNumber(weight)
	if err != nil || w == 0 {
		return s, fmt.Errorf("the weight %q of %q is not a number above 0", weight, text)
	}
	s.Weight = uint32(w)
	if strings.HasPrefix(rest, "/") {
		if strings.Contains(rest, ":") {
			return s, bad
		}
	} else if s.Host, s.Port, ok = cutLast(rest, ":"); !ok {
		return s, bad
	} else if _, err := twemproxyPort(s.Port); err != nil {
		return s, fmt.Errorf("%w in %q", err, text)
	}
	if s.Host == "" {
		return s, bad
	}
	s.Name = ring.NodeName(name, s.Host, s.Port)
	return s, nil
}

// cutLast cuts s at the last sep; without one, all of it comes before.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func twemproxyListen(text string) (TwemproxyListen, error) {
	if strings.HasPrefix(text, "/") {
		path, mode, found := cutLast(text, " ")
		if !found {
			return TwemproxyListen{Path: path}, nil
		}
		m, err := strconv.ParseUint(mode, 8, 32)
		if err != nil || m > 0o777 {
			return TwemproxyListen{}, fmt.Errorf("%q: after a space, write the socket's permissions, for example 0660", text)
		}
		return TwemproxyListen{Path: path, Mode: uint32(m)}, nil
	}
	host, port, ok := cutLast(text, ":")
	if !ok {
		return TwemproxyListen{}, fmt.Errorf("%q is not host:port or /path", text)
	}
	n, err := twemproxyPort(port)
	return TwemproxyListen{Host: host, Port: n}, err
}

func twemproxyPort(text string) (int, error) {
	n, err := twemproxyNumber(text)
	if err != nil || n < 1 || n > math.MaxUint16 {
		return 0, fmt.Errorf("%q is not a port", text)
	}
	return n, nil
}

// twemproxyNumber takes decimal digits only.
func twemproxyNumber(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number of 0 or more", text)
	}
	return int(n), nil
}
