// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// outsideFile is a member's file with that store.
func outsideFile(store string) string {
	return "member: {id: n1, host: 10.0.0.1}\nstore:\n" + store + `deployments:
  - name: mymaster
    nodes: [{id: n1, addr: "10.0.0.1:6479"}, {id: n2, addr: "10.0.0.2:6479"}]
    node: {id: n1}
proxy: {listen: "0.0.0.0:6379"}
`
}

func TestAStoreOutsideNeedsItsEndpointsAlone(t *testing.T) {
	c, err := Parse([]byte(outsideFile("  kind: etcd\n  endpoints: [\"http://10.0.0.8:2379\", \"http://10.0.0.9:2379\"]\n")), "f", "/etc")
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Store; !s.Outside() || s.Listen != "0.0.0.0:7380" || s.Root("mymaster") != "redoubt/mymaster" || len(s.Endpoints) != 2 {
		t.Fatalf("%+v", s)
	}
}

func TestAWrongStoreOutsideIsExplained(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.pem")
	if err := os.WriteFile(junk, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := "  endpoints: [\"https://10.0.0.8:2379\"]\n"
	for store, want := range map[string]string{
		"  kind: etcd\n":                                                                "f:2: store.endpoints: is missing",
		"  kind: zookeeper\n" + good:                                                    "use raft or etcd or consul",
		"  kind: etcd\n  endpoints: [\"10.0.0.8:2379\"]\n":                              "write http:// or https://, host and port",
		"  kind: etcd\n  endpoints: [\"http://10.0.0.8\"]\n":                            "write http:// or https://, host and port",
		"  kind: etcd\n  endpoints: [\"http://a:1\", \"http://a:1\"]\n":                 "is already used by store.endpoints[0]",
		"  kind: etcd\n  prefix: /\n" + good:                                            "store.prefix: is empty",
		"  kind: etcd\n  join: 10.0.0.2:7380\n" + good:                                  "members and join are for kind: raft",
		"  kind: etcd\n  username: root\n" + good:                                       "username and password, or password-file, belong together",
		"  kind: etcd\n  token: x\n" + good:                                             "store.token: is for consul",
		"  kind: consul\n  username: u\n  password: p\n" + good:                         "are for etcd: use token",
		"  kind: etcd\n  tls: {ca: /nowhere/ca.pem}\n" + good:                           "no such file or directory",
		"  kind: etcd\n  tls: {ca: " + junk + "}\n" + good:                              "no certificate in PEM form",
		"  kind: etcd\n  tls: {cert: a.pem}\n" + good:                                   "cert and key belong together",
		"  kind: etcd\n  tls: {server-name: a}\n  endpoints: [\"http://10.0.0.8:1\"]\n": "no endpoint begins with https://",
		"  join: 10.0.0.2:7380\n  listen: 10.0.0.1:7380\n" + good:                       "write kind: etcd or consul, too",
	} {
		_, err := Parse([]byte(outsideFile(store)), "f", dir)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nis answered by %v, not by %q", store, err, want)
		}
	}
}

func TestStoresAsURLs(t *testing.T) {
	s, err := ParseStoreURL("etcds://a:2379,b:2379/teams/cache/")
	if err != nil || s.Kind != StoreEtcd || strings.Join(s.Endpoints, " ") != "https://a:2379 https://b:2379" || s.Prefix != "teams/cache" {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := ParseStoreURL("consul://127.0.0.1:8500"); err != nil || s.Kind != StoreConsul || s.Prefix != "" || s.Endpoints[0] != "http://127.0.0.1:8500" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "etcd", "raft://a:1", "http://a:1", "redis://a:1"} {
		if s, err := ParseStoreURL(bad); err == nil {
			t.Errorf("%q became %+v", bad, s)
		}
	}
}
