// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"redoubt/internal/clock"
	"redoubt/internal/view"
)

func TestClientsOfASubnetAreToldTheirAddresses(t *testing.T) {
	w := newWorld()
	addrs := []string{"127.0.0.1:6101", "127.0.0.1:6102"}
	w.set(shardOf("n1", 1, addrs...))
	s := faceOf(t, w, Master{Mode: ModeDirect}, Options{Announce: []Announce{
		{Clients: netip.MustParsePrefix("10.0.0.0/8"), Map: map[string]string{"127.0.0.1": "10.9.9.9"}},
		{Clients: netip.MustParsePrefix("127.0.0.0/8"), Map: map[string]string{"127.0.0.1:6101": "203.0.113.1:7001", "127.0.0.1": "203.0.113.9"}},
	}})
	eventually(t, "the primary to be noted", func() bool { return s.masters[0].last.Load() != nil })
	c, sub := dial(t, s), dial(t, s)
	if got := c.ask("SENTINEL GET-MASTER-ADDR-BY-NAME mymaster", 5); got != "*2 $11 203.0.113.1 $4 7001" {
		t.Errorf("the mapped address: %q", got)
	}
	if got := c.ask("SENTINEL REPLICAS mymaster", 90); !strings.Contains(got, "$16 203.0.113.9:6102 $2 ip $11 203.0.113.9 $4 port $4 6102") || !strings.Contains(got, "$11 master-host $11 203.0.113.1") {
		t.Errorf("a mapped host: %q", got)
	}
	sub.ask("SUBSCRIBE +switch-master", 6)
	w.set(shardOf("n2", 2, addrs...))
	if got := sub.lines(7); !strings.HasSuffix(got, "mymaster 203.0.113.1 7001 203.0.113.9 6102") {
		t.Errorf("the event: %q", got)
	}
	if got := (tell{announce: &s.o.Announce[0]}).addr("127.0.0.1:6101"); got != "10.9.9.9:6101" {
		t.Errorf("the other subnet is told %s", got)
	}
	if got := (tell{hosts: map[string]string{"db1": "10.0.0.7"}}).addr("db1:6379"); got != "10.0.0.7:6379" {
		t.Errorf("a name that was looked up: %s", got)
	}
}

func TestEachShardIsAMasterOfItsOwn(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 1, "127.0.0.1:6101", "127.0.0.1:6102"))
	other := Master{Name: "other", Mode: ModeDirect, Beats: w, View: view.New(w, clock.Real{}, "shard/s", slog.New(slog.DiscardHandler))}
	s := faceOf(t, w, Master{Mode: ModeDirect}, Options{Masters: []Master{other}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = other.View.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "the other view to load", func() bool { return other.View.Load() != nil })
	c := dial(t, s)
	if got := c.ask("ROLE", 8); got != "*2 $8 sentinel *2 $8 mymaster $5 other" {
		t.Errorf("ROLE: %q", got)
	}
	if got := c.ask("SENTINEL RESET *", 1); got != ":2" {
		t.Errorf("RESET: %q", got)
	}
	if got := c.ask("SENTINEL GET-MASTER-ADDR-BY-NAME other", 5); got != "*2 $9 127.0.0.1 $4 6101" {
		t.Errorf("the other one: %q", got)
	}
}

func TestSettingsAreAcceptedWhereNothingChanges(t *testing.T) {
	w := newWorld()
	w.set(shardOf("n1", 1, "127.0.0.1:6101"))
	s := faceOf(t, w, Master{Mode: ModeDirect}, Options{Voters: func() int { return 3 }})
	c := dial(t, s)
	for _, step := range []struct{ ask, want string }{
		{"SENTINEL SET mymaster quorum 2", "+OK"},
		{"SENTINEL SET mymaster quorum 3", "-ERR quorum is not changed here: deployments and their settings are in the members' files, see `redoubt config sample`"},
		{"SENTINEL SET mymaster auth-pass x", "-ERR auth-pass is not changed here: deployments and their settings are in the members' files, see `redoubt config sample`"},
		{"SENTINEL SET mymaster nonsense x", "-ERR Unknown option or number of arguments for SENTINEL SET 'nonsense'"},
		{"SENTINEL CONFIG SET announce-hostnames yes", "+OK"},
		{"SENTINEL CONFIG SET announce-hostnames no", "-ERR announce-hostnames is not changed here: deployments and their settings are in the members' files, see `redoubt config sample`"},
		{"SENTINEL SIMULATE-FAILURE CRASH-AFTER-ELECTION", "-ERR failures are not simulated in production: this member goes on"},
		{"SENTINEL REMOVE mymaster", "-ERR this master is a deployment of Redoubt: stop its members, or hand it back with `redoubt hand-back`"},
		{"SENTINEL FAILOVER mymaster NONSENSE", "-ERR Unknown failover option specified"},
		{"SHUTDOWN", "-ERR this face is part of a Redoubt member: stop the member instead"},
	} {
		if got := c.ask(step.ask, 1); got != step.want {
			t.Errorf("%s: %q, want %q", step.ask, got, step.want)
		}
	}
}
