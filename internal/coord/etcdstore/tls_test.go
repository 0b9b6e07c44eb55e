// SPDX-License-Identifier: Apache-2.0

package etcdstore_test

import (
	"strings"
	"testing"
	"time"

	"redoubt/internal/config"
	"redoubt/internal/coord/etcdstore"
	"redoubt/test/outside"
)

// TestCertificatesAreAskedForAndGiven: etcd wants a client's certificate, and the client an authority of its own; what is wrong is said
// in words that help.
func TestCertificatesAreAskedForAndGiven(t *testing.T) {
	a, other := outside.NewAuthority(t), outside.NewAuthority(t)
	server, serverKey := a.Issue(t, "server", time.Hour)
	late, lateKey := a.Issue(t, "late server", -time.Hour)
	client, clientKey := a.Issue(t, "client", time.Hour)
	old, oldKey := a.Issue(t, "old", -time.Hour)
	foreign, foreignKey := other.Issue(t, "foreign", time.Hour)
	c := outside.Etcd(t, 1, "--cert-file", server, "--key-file", serverKey, "--trusted-ca-file", a.CA, "--client-cert-auth")
	expired := outside.Etcd(t, 1, "--cert-file", late, "--key-file", lateKey)
	plain := outside.Etcd(t, 1)
	for _, x := range []struct {
		name, want string
		at         *outside.Cluster
		with       config.StoreTLS
	}{
		{"good", "", c, config.StoreTLS{CA: a.CA, Cert: client, Key: clientKey}},
		{"no certificate", "refuses this member's certificate, or wants one", c, config.StoreTLS{CA: a.CA}},
		{"certificate of another authority", "refuses this member's certificate", c, config.StoreTLS{CA: a.CA, Cert: foreign, Key: foreignKey}},
		{"expired certificate", "certificate", c, config.StoreTLS{CA: a.CA, Cert: old, Key: oldKey}},
		{"no authority", "check store.tls.ca", c, config.StoreTLS{Cert: client, Key: clientKey}},
		{"another name", "server-name", c, config.StoreTLS{CA: a.CA, Cert: client, Key: clientKey, ServerName: "elsewhere"}},
		{"etcd's certificate has expired", "the store's certificate has expired", expired, config.StoreTLS{CA: a.CA}},
		{"no TLS there", "write http://", plain, config.StoreTLS{CA: a.CA}},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			secure, err := x.with.Config()
			if err != nil {
				t.Fatal(err)
			}
			at := strings.Replace(x.at.Endpoints[0], "http://", "https://", 1)
			s, err := etcdstore.Open(etcdstore.Options{Endpoints: []string{at}, Prefix: "/p", TLS: secure, Log: testLog()})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			deadline := time.Now().Add(10 * time.Second)
			for { // the first attempts may end before the connection has failed
				_, err = s.Read(within(t, time.Second), "k")
				if x.want == "" && err == nil || x.want != "" && err != nil && strings.Contains(err.Error(), x.want) {
					t.Logf("%v", err)
					return
				}
				if x.want != "" && err == nil || time.Now().After(deadline) {
					t.Fatalf("want %q: %v", x.want, err)
				}
			}
		})
	}
}
