// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"strings"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// What a server's word about its own disk is worth (WAITAOF; SAFETY A12).

const (
	appendFsync      = "appendfsync"
	everySecond      = "everysec"
	noFsyncOnRewrite = "no-appendfsync-on-rewrite"
	waitsForDisk     = "command waitaof" // key for whether the server has that command
)

// confirmsDisk is the first version of Redis, and below that of Valkey, that can: see redis.ConfirmsDisk.
const confirmsDisk = 704

// knowsCommand reads the answer to COMMAND INFO: "no" for a command that the server does not have, or has under another name.
func knowsCommand(r reply) string {
	if r.err() == nil && len(r.items) == 1 && r.items[0].null {
		return "no"
	}
	return ""
}

// diskState says whether this server can be believed about what is on its disk; if it never can be, why, and what to do.
func (n *Node) diskState(cfg map[string]string, version string) (topo.DiskState, string) {
	why := redis.ConfirmsDisk(version)
	switch {
	case why != "":
		return topo.DiskUnable, why
	case cfg[waitsForDisk] == "no":
		return topo.DiskUnable, "it has no command WAITAOF: remove its rename-command"
	case cfg["appendonly"] == "yes" && syncsAlways(cfg):
		return topo.DiskSynced, ""
	case cfg["appendonly"] == "yes":
		return topo.DiskAble, ""
	case n.managed != nil:
		return topo.DiskUnable, "it has no append-only file: set node.persistence to aof in this member's file and start it again, or use durability quorum"
	}
	return topo.DiskUnable, "it has no append-only file (appendonly is no): set appendonly yes in its configuration file and by CONFIG SET, or use durability quorum"
}

// syncsAlways reports whether these settings have every write synced before it is answered for.
func syncsAlways(cfg map[string]string) bool {
	return cfg[appendFsync] == "always" && cfg[noFsyncOnRewrite] == "no"
}

// syncing is what the server goes back to when its writes need not be synced any more. What others set meanwhile is theirs.
func (n *Node) syncing(disk bool) []demand {
	if disk || !n.disk || n.managed == nil || n.managed.o.Persistence != PersistAOF && n.managed.o.Persistence != "" {
		return nil
	}
	return []demand{{name: appendFsync, value: n.managed.o.appendFsync()}}
}

// appendFsync is what the configuration says of it.
func (o Options) appendFsync() string {
	for name, value := range o.Directives {
		if strings.EqualFold(name, appendFsync) {
			return strings.ToLower(strings.Trim(value, `"' `))
		}
	}
	return everySecond
}
