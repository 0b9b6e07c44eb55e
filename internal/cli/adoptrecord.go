// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"redoubt/internal/config"
	"redoubt/internal/redisd"
	"redoubt/internal/topo"
)

// recordFile is what `redoubt adopt` remembers of a Sentinel set-up for taking over and for the way back. It has no passwords: those are in
// the members' files beside it.
const recordFile = "adoption.json"

// adoptRecord is its content.
type adoptRecord struct {
	Format    int                    `json:"format"` // 1
	Name      string                 `json:"name"`
	Members   []config.AdoptedMember `json:"members"`
	APIs      []string               `json:"apis"`
	Faces     []string               `json:"faces"` // where members answer Sentinel clients
	Nodes     []adoptedNode          `json:"nodes"`
	Sentinels []oldSentinel          `json:"sentinels"`
	Scripts   map[string]string      `json:"scripts,omitempty"`   // of the old Sentinels' configuration
	AuthUser  string                 `json:"auth_user,omitempty"` // likewise
}

// adoptedNode is a server, and what Redoubt may change at it.
type adoptedNode struct {
	ID         topo.NodeID       `json:"id"`
	Addr       string            `json:"addr"`
	Settings   map[string]string `json:"settings"`
	MasterUser string            `json:"master_user,omitempty"`
	MasterAuth bool              `json:"master_auth,omitempty"` // it logs in at its primary with the deployment's password
}

func readRecord(dir string) (adoptRecord, error) {
	var r adoptRecord
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, fail(ExitUsage, "there is no %s in %s: make a plan first (redoubt adopt --sentinel HOST:PORT --out %s)", recordFile, dir, dir)
	}
	if err != nil {
		return r, fmt.Errorf("read the adoption's record: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil || r.Format != 1 || len(r.Members) == 0 || len(r.Sentinels) == 0 {
		return r, fail(ExitFailed, "%s is not a record that this version can read: make a new plan in another directory", filepath.Join(dir, recordFile))
	}
	return r, nil
}

// passwords are those of the servers and of the Sentinels, from the first member's file.
func (r adoptRecord) passwords(dir string) (servers, sentinels string, err error) {
	c, err := config.Load(filepath.Join(dir, r.Members[0].ID, "redoubt.yaml"))
	if err != nil {
		return "", "", err
	}
	return c.Deployments[0].Password, c.Sentinel.Password, nil
}

func (r adoptRecord) node(addr string) (adoptedNode, bool) {
	for _, n := range r.Nodes {
		if n.Addr == addr {
			return n, true
		}
	}
	return adoptedNode{}, false
}

// server is what a server says of itself.
type server struct {
	run, replid, role string
	follows           string
	linkUp            bool
	offset            string
	version           string
	cluster           bool
}

func describeServer(c *redisConn) (server, error) {
	var s server
	m, err := c.info("server")
	if err != nil {
		return s, err
	}
	r, err := c.info("replication")
	if err != nil {
		return s, err
	}
	s = server{run: m["run_id"], version: m["redis_version"], cluster: m["redis_mode"] == "cluster", role: r["role"], replid: r["master_replid"], offset: r["master_repl_offset"]}
	if s.role == "slave" {
		s.follows, s.linkUp = net.JoinHostPort(r["master_host"], r["master_port"]), r["master_link_status"] == "up"
	}
	return s, nil
}

// examine checks that a server is what the Sentinels say, and remembers its settings.
func examine(ctx context.Context, addr, password, primary string) (adoptedNode, error) {
	n := adoptedNode{Addr: addr, Settings: map[string]string{}}
	c, err := dialPeer(ctx, addr, password)
	if err != nil {
		return n, fmt.Errorf("the server at %s: %w", addr, err)
	}
	defer c.close()
	s, err := describeServer(c)
	switch {
	case err != nil:
		return n, fmt.Errorf("the server at %s: %w (--password-file says its password)", addr, err)
	case s.cluster:
		return n, fmt.Errorf("the server at %s is a member of a cluster, which Sentinels do not watch", addr)
	case addr == primary && s.role != "master":
		return n, fmt.Errorf("the server at %s is no primary, whatever the Sentinels say: wait until they have found out", addr)
	case addr != primary && s.role != "slave":
		return n, fmt.Errorf("the server at %s is no replica, whatever the Sentinels say: wait until they have found out", addr)
	case addr != primary && !s.linkUp:
		return n, fmt.Errorf("the replica at %s has no link to its primary: wait until it has", addr)
	case addr != primary && s.follows != primary:
		return n, fmt.Errorf("the replica at %s follows %s, and not %s: replicas of replicas cannot be adopted", addr, s.follows, primary)
	}
	for _, name := range redisd.TouchedSettings() {
		pair, err := c.list("CONFIG", "GET", name)
		if err != nil {
			return n, fmt.Errorf("the server at %s: %w", addr, err)
		}
		if len(pair) == 2 {
			n.Settings[name] = pair[1]
		}
	}
	for _, name := range []string{"masteruser", "masterauth"} {
		pair, err := c.list("CONFIG", "GET", name)
		if err != nil || len(pair) != 2 {
			continue
		}
		if name == "masteruser" {
			n.MasterUser = pair[1]
		} else {
			n.MasterAuth = pair[1] != ""
		}
	}
	return n, nil
}

func readSecret(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fail(ExitUsage, "read a password: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimRight(line, "\r"), nil
}
