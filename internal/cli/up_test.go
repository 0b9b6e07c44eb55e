// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net"
	"strings"
	"testing"
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
