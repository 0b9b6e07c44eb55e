// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"fmt"
	"strings"
	"time"
)

// What changes a Sentinel's settings. Here they are in the members' files: asked for what they are already, the face says OK, so that tools
// which set them again and again go on; anything else is refused in words.

const elsewhere = "ERR %s is not changed here: deployments and their settings are in the members' files, see `redoubt config sample`"

// set runs SENTINEL SET name option value ….
func (se *session) set(m *master, options []string) {
	t := se.tell()
	p, _ := m.primary()
	now := map[string]string{"down-after-milliseconds": m.downAfter(), "notification-script": se.s.o.Scripts.Notification, "client-reconfig-script": se.s.o.Scripts.Reconfig}
	for _, kv := range append(m.settings(), m.masterFields(t, p)...) {
		now[kv[0]] = kv[1]
	}
	for i := 0; i < len(options); i += 2 {
		name := strings.ToLower(options[i])
		switch name {
		case "down-after-milliseconds", "failover-timeout", "parallel-syncs", "notification-script", "client-reconfig-script", "quorum",
			"auth-pass", "auth-user", "rename-command", "master-reboot-down-after-period":
		default:
			se.fail(fmt.Sprintf("ERR Unknown option or number of arguments for SENTINEL SET '%.128s'", options[i]))
			return
		}
		if i+1 >= len(options) {
			se.fail(fmt.Sprintf("ERR Unknown option or number of arguments for SENTINEL SET '%.128s'", options[i]))
			return
		}
		if was, known := now[name]; !known || was != options[i+1] {
			se.fail(fmt.Sprintf(elsewhere, name))
			return
		}
	}
	se.simple("OK")
}

// globals are what SENTINEL CONFIG knows, in its order.
func (se *session) globals() fields {
	yes := map[bool]string{true: "yes", false: "no"}
	ip, port := se.tell().at(se.s.o.Advertise)
	return fields{
		{"resolve-hostnames", "yes"}, {"announce-hostnames", yes[!se.s.o.Resolve]}, {"announce-ip", ip}, {"announce-port", port},
		{"sentinel-user", se.s.o.Username}, {"sentinel-pass", strings.Repeat("*", min(len(se.s.o.Password), 8))},
	}
}

// configure runs SENTINEL CONFIG GET pattern and SET option value.
func (se *session) configure(args []string) {
	switch {
	case upper(args, 2) == "GET" && len(args) == 4:
		var f fields
		for _, kv := range se.globals() {
			if match(strings.ToLower(args[3]), kv[0]) {
				f = append(f, kv)
			}
		}
		se.fields(f)
	case upper(args, 2) == "SET" && len(args) == 5:
		for _, kv := range se.globals() {
			if kv[0] != strings.ToLower(args[3]) {
				continue
			}
			if kv[1] == args[4] && kv[0] != "sentinel-pass" {
				se.simple("OK")
			} else {
				se.fail(fmt.Sprintf(elsewhere, kv[0]))
			}
			return
		}
		se.fail(fmt.Sprintf("ERR Invalid argument '%.128s' to SENTINEL CONFIG SET", args[3]))
	default:
		se.fail("ERR Only SENTINEL CONFIG GET <option> / SET <option> <value> are supported.")
	}
}

// debug shows the times that come nearest to a Sentinel's, under its names.
func (se *session) debug(args []string) {
	t := se.s.masters[0].timing()
	f := fields{
		{"INFO-PERIOD", ms(refreshBusy)}, {"PING-PERIOD", ms(t.Beat.D())}, {"ASK-PERIOD", ms(t.Beat.D())}, {"PUBLISH-PERIOD", ms(refreshBusy)},
		{"DEFAULT-DOWN-AFTER", ms(t.Silence.D())}, {"DEFAULT-FAILOVER-TIMEOUT", ms(t.Park.D())},
		{"TILT-TRIGGER", "0"}, {"TILT-PERIOD", "0"}, // a suspended process counts its suspension, and needs no tilt
		{"SLAVE-RECONF-TIMEOUT", ms(time.Second)}, {"MIN-LINK-RECONNECT-PERIOD", ms(t.Beat.D())}, {"ELECTION-TIMEOUT", ms(t.Promote.D())},
		{"SCRIPT-MAX-RUNTIME", ms(scriptTime)}, {"SCRIPT-RETRY-DELAY", ms(scriptDelay)},
	}
	if len(args) == 2 {
		se.fields(f)
		return
	}
	for _, kv := range f {
		if strings.EqualFold(kv[0], args[2]) && len(args)%2 == 0 {
			se.fail(fmt.Sprintf(elsewhere, strings.ToLower(kv[0])))
			return
		}
	}
	se.fail(fmt.Sprintf("ERR Unknown option or number of arguments for SENTINEL DEBUG '%.128s'", args[2]))
}

func (se *session) simulate(args []string) {
	for i := 2; i < len(args); i++ {
		switch upper(args, i) {
		case "HELP":
			se.array(2)
			se.bulk("crash-after-election")
			se.bulk("crash-after-promotion")
			return
		case "CRASH-AFTER-ELECTION", "CRASH-AFTER-PROMOTION":
		default:
			se.fail("ERR Unknown failure simulation specified")
			return
		}
	}
	se.fail("ERR failures are not simulated in production: this member goes on")
}

// monitor runs SENTINEL MONITOR name ip port quorum.
func (se *session) monitor(args []string) {
	if se.s.master(args[2]) != nil {
		se.fail("ERR Duplicate master name.")
		return
	}
	se.fail("ERR another master is another deployment, with members of its own: `redoubt adopt --sentinel` makes one of what Sentinels watch")
}

func (se *session) help() {
	lines := []string{
		"SENTINEL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
		"CKQUORUM <master-name>", "    Check whether enough members are alive to decide a failover.",
		"CONFIG GET <param>", "    Show what would be a Sentinel's global configuration.",
		"CONFIG SET <param> <value>", "    Accepted where nothing changes: the members' files have the settings.",
		"DEBUG", "    Show times, in milliseconds.",
		"GET-MASTER-ADDR-BY-NAME <master-name>", "    Return the address that clients should write to.",
		"FAILOVER <master-name> [COORDINATED]", "    Ask for a planned switchover, which loses nothing.",
		"FLUSHCONFIG", "    Agreed state is always on disk.",
		"INFO-CACHE <master-name>", "    Return what the agents reported of each server.",
		"IS-MASTER-DOWN-BY-ADDR <ip> <port> <current-epoch> <runid>", "    Say whether the primary at that address is out of service.",
		"MASTER <master-name>", "    Show the state of a deployment or shard.",
		"MASTERS", "    Show the state of all of them.",
		"MYID", "    Return the id of this member's face.",
		"PENDING-SCRIPTS", "    Show scripts that run or wait.",
		"REPLICAS <master-name>", "    Show where reads may go.",
		"RESET <pattern>", "    Count the masters whose name matches: there is nothing to reset.",
		"SENTINELS <master-name>", "    Show the faces of the other members.",
		"SET <master-name> <option> <value> [<option> <value> ...]", "    Accepted where nothing changes: the members' files have the settings.",
		"HELP", "    Print this help.",
	}
	se.array(len(lines))
	for _, l := range lines {
		se.simple(l)
	}
}
