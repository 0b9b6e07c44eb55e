// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"strings"
	"testing"

	"redoubt/internal/topo"
)

// shown makes the replies to a look of a member of a cluster.
func shown(fields, settings, link string) []reply {
	var cfg reply
	for _, w := range strings.Fields(settings) {
		cfg.items = append(cfg.items, reply{kind: '$', text: w})
	}
	role := reply{kind: '*', items: []reply{{text: "master"}, {text: "7"}, {}}}
	if link != "" {
		role = reply{kind: '*', items: []reply{{text: "slave"}, {text: "10.0.0.1"}, {text: "7000"}, {text: link}, {text: "7"}}}
	}
	return []reply{{kind: '$', text: strings.ReplaceAll(fields, " ", "\r\n") + "\r\nmaster_repl_offset:7\r\n"}, cfg, role}
}

func TestALookAtAMemberSpeaksTheWordsOfAServerByItself(t *testing.T) {
	t.Parallel()
	const (
		primary = "role:master loading:0"
		replica = "role:slave master_host:10.0.0.1 master_port:7000 loading:0 slave_repl_offset:7 master_link_status:"
		shut    = "port 0 min-replicas-to-write 1000 repl-ping-replica-period 2000000000 masteruser redoubt-frozen masterauth -"
		booted  = "port 0 min-replicas-to-write 1000 repl-ping-replica-period 1 masteruser redoubt-frozen masterauth -"
		serving = "port 7001 min-replicas-to-write 0 repl-ping-replica-period 1 masteruser redoubt-frozen masterauth -"
		follows = "port 7001 min-replicas-to-write 0 repl-ping-replica-period 1 masteruser redoubt-repl masterauth x"
	)
	for name, c := range map[string]struct {
		fields, settings, link string
		role                   topo.Role
		frozen, whole          bool
		unsealed               bool
		following              string
	}{
		"a closed primary":             {primary, shut, "", topo.RoleReplica, true, true, false, ""},
		"one that has just booted":     {primary, booted, "", topo.RoleReplica, true, true, true, ""},
		"one that loads":               {"role:master loading:1", booted, "", topo.RoleReplica, true, false, false, ""},
		"one that pings":               {primary, strings.Replace(shut, "2000000000", "1", 1), "", topo.RoleReplica, true, true, true, ""},
		"one that would take writes":   {primary, strings.Replace(shut, "1000", "0", 1), "", topo.RoleReplica, true, true, true, ""},
		"an open primary":              {primary, serving, "", topo.RolePrimary, false, true, false, ""},
		"a replica":                    {replica + "up", follows, "connected", topo.RoleReplica, false, true, false, "10.0.0.1:7000"},
		"a replica without a link":     {replica + "down", follows, "connect", topo.RoleReplica, false, true, false, "10.0.0.1:7000"},
		"a frozen replica":             {replica + "down", serving, "connect", topo.RoleReplica, true, true, false, ""},
		"one that tries":               {replica + "down", serving, "connecting", topo.RoleReplica, true, true, false, ""},
		"one that may still succeed":   {replica + "down", serving, "handshake", topo.RoleReplica, false, true, false, "10.0.0.1:7000"},
		"one that was not cut yet":     {replica + "up", serving, "connected", topo.RoleReplica, false, true, false, "10.0.0.1:7000"},
		"one in the middle of a sync":  {replica + "down master_sync_in_progress:1", serving, "sync", topo.RoleReplica, false, false, false, "10.0.0.1:7000"},
		"a demoted primary, no port":   {replica + "down", shut, "connect", topo.RoleReplica, true, true, false, ""},
		"a replica that was demoted":   {replica + "down", serving, "none", topo.RoleReplica, true, true, false, ""},
		"a server that says no role":   {"loading:0", serving, "", topo.RoleUnknown, false, false, false, ""},
		"a primary that lost its port": {primary, strings.Replace(serving, "7001", "0", 1), "", topo.RoleReplica, true, true, true, ""},
	} {
		m := member{}.read(shown(c.fields, c.settings, c.link))
		if m.role() != c.role || m.frozen() != c.frozen || m.whole() != c.whole && c.role != topo.RoleUnknown || m.unsealed() != c.unsealed || m.following() != c.following {
			t.Errorf("%s: role %q, frozen %v, whole %v, unsealed %v, following %q", name, m.role(), m.frozen(), m.whole(), m.unsealed(), m.following())
		}
	}
}

// TestAHandshakeWithTheFrozenLoginIsNoReasonToFreezeAgain: the attempts go on once a second, and each shows as a handshake.
func TestAHandshakeWithTheFrozenLoginIsNoReasonToFreezeAgain(t *testing.T) {
	t.Parallel()
	n := newNode("127.0.0.1:7001", nil, nil)
	n.cluster, n.d = &ClusterSeat{}, member{}
	const replica = "role:slave master_host:10.0.0.1 master_port:7000 loading:0 master_link_status:down"
	look := func(user, link string) bool {
		return n.read(shown(replica, "port 7001 masteruser "+user+" masterauth -", link)).frozen()
	}
	for i, step := range []struct {
		user, link string
		frozen     bool
	}{
		{frozenUser, "handshake", false}, // of before, perhaps
		{frozenUser, "connect", true},
		{frozenUser, "handshake", true}, // with the frozen login
		{"redoubt-repl", "handshake", false},
		{frozenUser, "handshake", false}, // of a moment ago
		{frozenUser, "connecting", true},
	} {
		if got := look(step.user, step.link); got != step.frozen {
			t.Errorf("step %d: frozen %v", i, got)
		}
	}
	n.newProcess(nil, topo.RoleReplica)
	if look(frozenUser, "handshake") {
		t.Error("what was seen of one process counts for the next one")
	}
}
