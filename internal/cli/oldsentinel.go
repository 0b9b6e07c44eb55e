// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"redoubt/internal/resp"
)

// muffled is how long Sentinels wait while they are taken over from: long enough that they decide nothing meanwhile, and short
// enough that they are back by themselves should nobody undo it.
const muffled = "600000"

// peerTime bounds one answer of a server or a Sentinel.
const peerTime = 5 * time.Second

// dialPeer connects to a server or a Sentinel.
func dialPeer(ctx context.Context, addr, password string) (*redisConn, error) {
	nc, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	r := &redisConn{nc: nc, patience: peerTime, stop: context.AfterFunc(ctx, func() { _ = nc.Close() })}
	if password == "" {
		return r, nil
	}
	if err := r.must("AUTH", password); err != nil {
		r.close()
		return nil, fmt.Errorf("log in at %s: %w", addr, err)
	}
	return r, nil
}

// text is the reply to a command as one text. An error reply is an error.
func (r *redisConn) text(args ...string) (string, error) {
	frame, err := r.do(args...)
	if err != nil {
		return "", err
	}
	if frame[0] == '-' {
		return "", fmt.Errorf("%s: %s", strings.Join(args[:min(2, len(args))], " "), resp.Text(frame))
	}
	return string(resp.Text(frame)), nil
}

// list is the reply to a command as texts.
func (r *redisConn) list(args ...string) ([]string, error) {
	frame, err := r.do(args...)
	if err != nil {
		return nil, err
	}
	if frame[0] == '-' {
		return nil, fmt.Errorf("%s: %s", strings.Join(args[:min(2, len(args))], " "), resp.Text(frame))
	}
	var out []string
	for _, e := range resp.Elements(frame, nil) {
		out = append(out, string(resp.Text(e)))
	}
	return out, nil
}

// info asks for a section of INFO.
func (r *redisConn) info(section string) (map[string]string, error) {
	text, err := r.text("INFO", section)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			m[name] = value
		}
	}
	return m, nil
}

// isSentinel refuses a server or a member's face: what follows is an order to a Sentinel.
func (r *redisConn) isSentinel() error {
	m, err := r.info("server")
	switch {
	case err != nil:
		return err
	case m["redis_mode"] != "sentinel":
		return errors.New("this is no Sentinel")
	case m["redoubt_version"] != "":
		return errOurs
	}
	return nil
}

// errOurs: a member answers where a Sentinel did.
var errOurs = errors.New("a member of Redoubt answers here")

// wanted are the settings of a watched master that are kept for the way back.
func wanted() []string {
	return []string{"quorum", "down-after-milliseconds", "failover-timeout", "parallel-syncs"}
}

// masterOf asks one Sentinel for what it knows of a master.
func (r *redisConn) masterOf(name string) (map[string]string, error) {
	flat, err := r.list("SENTINEL", "MASTER", name)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for i := 0; i+1 < len(flat); i += 2 {
		m[flat[i]] = flat[i+1]
	}
	return m, nil
}

// unknownMaster tells a Sentinel's word for "I do not watch that".
func unknownMaster(err error) bool {
	return err != nil && strings.Contains(err.Error(), "No such master")
}

// trouble says why the master of that description cannot be adopted now; empty: it can.
func trouble(m map[string]string) string {
	for f := range strings.SplitSeq(m["flags"], ",") {
		switch f {
		case "master", "force_failover":
		default:
			return "it is " + m["flags"]
		}
	}
	if s := m["failover-state"]; s != "" {
		return "a failover is under way (" + s + ")"
	}
	return ""
}

// discovered is what a Sentinel set-up looks like.
type discovered struct {
	name      string
	primary   string
	others    []string
	sentinels []oldSentinel
	quiet     bool // an attempt to take over was cut short
}

// oldSentinel is one Sentinel, and its settings of the master.
type oldSentinel struct {
	Addr     string            `json:"addr"`
	Settings map[string]string `json:"settings"`
}

// discover reads a live set-up: the first of the Sentinels that answers names the others, and all of them must agree.
func discover(ctx context.Context, addrs []string, password, name string) (discovered, error) {
	var failures []error
	for _, addr := range addrs {
		d, err := discoverAt(ctx, addr, password, name)
		if err == nil {
			err = d.agree(ctx, password)
		}
		if err == nil {
			return d, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", addr, err))
	}
	return discovered{}, errors.Join(failures...)
}

func discoverAt(ctx context.Context, addr, password, name string) (discovered, error) {
	c, err := dialPeer(ctx, addr, password)
	if err != nil {
		return discovered{}, err
	}
	defer c.close()
	if err := c.isSentinel(); err != nil {
		return discovered{}, err
	}
	masters, err := c.maps("SENTINEL", "MASTERS")
	if err != nil {
		return discovered{}, err
	}
	m, err := chooseMaster(masters, name)
	if err != nil {
		return discovered{}, err
	}
	if why := trouble(m); why != "" {
		return discovered{}, fmt.Errorf("the primary of %s, %s:%s: %s; adopt when all is well", m["name"], m["ip"], m["port"], why)
	}
	self, err := c.text("SENTINEL", "MYID")
	if err != nil {
		return discovered{}, err
	}
	d := discovered{name: m["name"], primary: net.JoinHostPort(m["ip"], m["port"])}
	if d.others, err = c.replicasOf(ctx, d.name); err != nil {
		return d, err
	}
	peers, err := c.maps("SENTINEL", "SENTINELS", d.name)
	if err != nil {
		return d, err
	}
	for _, p := range peers {
		at := net.JoinHostPort(p["ip"], p["port"])
		d.sentinels = append(d.sentinels, oldSentinel{Addr: at})
		if known := addressOf(ctx, at, password, d.name, self); known != "" {
			addr = known // as clients reach it, however it was named here
		}
	}
	d.sentinels = append(d.sentinels, oldSentinel{Addr: addr})
	slices.SortFunc(d.sentinels, func(x, y oldSentinel) int { return strings.Compare(x.Addr, y.Addr) })
	return d, nil
}

// addressOf asks one Sentinel where another one is; empty: it does not say.
func addressOf(ctx context.Context, asked, password, name, id string) string {
	c, err := dialPeer(ctx, asked, password)
	if err != nil {
		return ""
	}
	defer c.close()
	peers, err := c.maps("SENTINEL", "SENTINELS", name)
	if err != nil {
		return ""
	}
	for _, p := range peers {
		if p["runid"] == id {
			return net.JoinHostPort(p["ip"], p["port"])
		}
	}
	return ""
}

func chooseMaster(masters []map[string]string, name string) (map[string]string, error) {
	var names []string
	for _, m := range masters {
		if m["name"] == name || name == "" && len(masters) == 1 {
			return m, nil
		}
		names = append(names, m["name"])
	}
	if len(names) == 0 {
		return nil, errors.New("this Sentinel watches nothing")
	}
	return nil, fmt.Errorf("--name %q: use one of %s; each becomes a deployment of its own", name, strings.Join(names, ", "))
}

// agree asks every Sentinel for its settings, and whether it sees the same primary.
func (d *discovered) agree(ctx context.Context, password string) error {
	for i := range d.sentinels {
		s := &d.sentinels[i]
		c, err := dialPeer(ctx, s.Addr, password)
		if err != nil {
			return fmt.Errorf("the Sentinel at %s cannot be asked (%w): start it, or have the others forget it (SENTINEL RESET %s)", s.Addr, err, d.name)
		}
		m, err := c.masterOf(d.name)
		c.close()
		if err != nil {
			return fmt.Errorf("the Sentinel at %s: %w", s.Addr, err)
		}
		if at := net.JoinHostPort(m["ip"], m["port"]); at != d.primary {
			return fmt.Errorf("the Sentinel at %s takes %s for the primary, and not %s: adopt when they agree", s.Addr, at, d.primary)
		}
		if why := trouble(m); why != "" {
			return fmt.Errorf("to the Sentinel at %s the primary is in trouble: %s", s.Addr, why)
		}
		s.Settings = map[string]string{}
		for _, k := range wanted() {
			s.Settings[k] = m[k]
		}
		d.quiet = d.quiet || m["down-after-milliseconds"] == muffled
	}
	return nil
}

// dial connects to a Sentinel, and to nothing else that may answer there by now.
func (s oldSentinel) dial(ctx context.Context, password string) (*redisConn, error) {
	c, err := dialPeer(ctx, s.Addr, password)
	if err != nil {
		return nil, err
	}
	if err := c.isSentinel(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// set changes settings of a master at one Sentinel.
func (s oldSentinel) set(ctx context.Context, password, name string, settings map[string]string) error {
	c, err := s.dial(ctx, password)
	if err != nil {
		return err
	}
	defer c.close()
	return c.setMaster(name, settings)
}

func (r *redisConn) setMaster(name string, settings map[string]string) error {
	cmd := []string{"SENTINEL", "SET", name}
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		cmd = append(cmd, k, settings[k])
	}
	return r.must(cmd...)
}

// forget has a Sentinel watch the master no more. left is how many others it still watches.
func (s oldSentinel) forget(ctx context.Context, password, name string) (left int, err error) {
	c, err := s.dial(ctx, password)
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := c.must("SENTINEL", "REMOVE", name); err != nil && !unknownMaster(err) {
		return 0, err
	}
	masters, err := c.maps("SENTINEL", "MASTERS")
	return len(masters), err
}

// shutDown ends the process of a Sentinel that watches nothing any more.
func (s oldSentinel) shutDown(ctx context.Context, password string) error {
	c, err := s.dial(ctx, password)
	if err != nil {
		return err
	}
	defer c.close()
	frame, err := c.do("SHUTDOWN")
	if err == nil && frame[0] == '-' {
		return fmt.Errorf("%s", resp.Text(frame))
	}
	if errors.Is(err, io.EOF) || err != nil && strings.Contains(err.Error(), "reset") {
		return nil // it ends without an answer
	}
	return err
}
