// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net"
	"strings"
	"testing"

	"redoubt/internal/config"
)

func TestPortsOfOthersAreNamedAndOwnServersMayStillRun(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	busy, free := ln.Addr().String(), "127.0.0.1:0"
	m := planMember{ID: "n1", Proxy: free, Readonly: free, Sentinel: free, API: free, Store: free, Server: busy}
	if err := portsFree([]planMember{m}, true); err == nil || !strings.Contains(err.Error(), busy+" (server of n1)") {
		t.Errorf("a new deployment: %v", err)
	}
	if err := portsFree([]planMember{m}, false); err != nil {
		t.Errorf("a server that outlived its member: %v", err)
	}
	m.Server, m.API = "", busy
	if err := portsFree([]planMember{m}, false); err == nil || !strings.Contains(err.Error(), busy+" (API of n1)") {
		t.Errorf("another process at the API's port: %v", err)
	}
}

func TestAClusterSpreadsItsPrimaries(t *testing.T) {
	p, err := newPlan(21000, 1, 3, "cluster", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Members) != 3 || p.Durability != "async" || p.Members[1].Node != "n2" {
		t.Errorf("%+v", p)
	}
	for i, want := range []string{"127.0.0.1:21100, ,127.0.0.1:21120", "127.0.0.1:21101,127.0.0.1:21111, ", " ,127.0.0.1:21112,127.0.0.1:21122"} {
		var got []string
		for _, s := range p.Members[i].Servers {
			if s == "" {
				s = " "
			}
			got = append(got, s)
		}
		if strings.Join(got, ",") != want {
			t.Errorf("%s has %q, want %q", p.Members[i].ID, got, want)
		}
	}
	if n := len(p.Members[0].ports()); n != 4+2+2 {
		t.Errorf("%d ports: %v", n, p.Members[0].ports())
	}
	file := p.file(p.Members[1])
	for _, want := range []string{"mode: cluster", "- {id: n2, host: n2, addr: \"127.0.0.1:21111\", bus-port: 21311}", "- {id: n1, host: n1, addr: \"127.0.0.1:21120\", bus-port: 21320, priority: 1}"} {
		if !strings.Contains(file, want) {
			t.Errorf("%q is not in\n%s", want, file)
		}
	}
	for _, m := range p.Members {
		if _, err := config.Parse([]byte(p.file(m)), "f", "/"); err != nil {
			t.Error(err)
		}
	}
	if p, err = newPlan(55300, 0, 16, "cluster", ""); err != nil || p.Members[0].Buses[0] != 55300+300 {
		t.Errorf("%v %+v", err, p.Members[0])
	}
	if p, err = newPlan(21000, 1, 1, "cluster", ""); err != nil || p.Members[2].ID != "arbiter1" || p.Members[2].Node != "" {
		t.Errorf("%v %+v", err, p.Members)
	}
	if p, err = newPlan(21000, 2, 3, "cluster", ""); err != nil || p.Durability != "quorum" {
		t.Errorf("%v, durability %s", err, p.Durability)
	}
}
