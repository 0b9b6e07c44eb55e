// SPDX-License-Identifier: Apache-2.0

package consulstore_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"redoubt/internal/config"
	"redoubt/internal/coord"
	"redoubt/internal/coord/consulstore"
	"redoubt/test/outside"
)

const management = "11111111-2222-4333-8444-555555555555"

// tokenFor makes a token with a policy, by Consul's own API.
func tokenFor(t *testing.T, c *outside.Cluster, tls config.StoreTLS, rules string) string {
	t.Helper()
	secure, err := tls.Config()
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: secure}, Timeout: 5 * time.Second}
	defer h.CloseIdleConnections()
	put := func(path string, in, out any) bool {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, c.Endpoints[0]+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Consul-Token", management)
		resp, err := h.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode == http.StatusOK {
			err = json.Unmarshal(text, out)
		}
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			t.Logf("%s: %s %s", path, resp.Status, text)
		}
		return resp.StatusCode == http.StatusOK
	}
	var policy struct{ ID string }
	deadline := time.Now().Add(15 * time.Second)
	for !put("/v1/acl/policy", map[string]string{"Name": "redoubt", "Rules": rules}, &policy) { // its access control begins after its election
		if time.Now().After(deadline) {
			t.Fatal("no policy can be made")
		}
		<-time.After(100 * time.Millisecond)
	}
	var token struct{ SecretID string }
	if !put("/v1/acl/token", map[string]any{"Policies": []map[string]string{{"ID": policy.ID}}}, &token) {
		t.Fatal("no token can be made")
	}
	return token.SecretID
}

// TestTokensAndCertificatesAreNeeded: what the guide says is enough, and what is wrong is said in words that help.
func TestTokensAndCertificatesAreNeeded(t *testing.T) {
	a, other := outside.NewAuthority(t), outside.NewAuthority(t)
	client, clientKey := a.Issue(t, "client", time.Hour)
	old, oldKey := a.Issue(t, "old", -time.Hour)
	c := outside.ConsulWithTLS(t, a, management)
	good := config.StoreTLS{CA: a.CA, Cert: client, Key: clientKey}
	token := tokenFor(t, c, good, `key_prefix "redoubt/" { policy = "write" }`)
	plain := strings.Replace(c.Endpoints[0], "https://", "http://", 1)
	for _, x := range []struct {
		name, at, token, prefix, want string
		with                          config.StoreTLS
	}{
		{"good", c.Endpoints[0], token, "redoubt/d", "", good},
		{"unknown token", c.Endpoints[0], "22222222-2222-4333-8444-555555555555", "redoubt/d", "check store.token", good},
		{"no token", c.Endpoints[0], "", "redoubt/d", "give it a policy with key_prefix", good},
		{"another prefix", c.Endpoints[0], token, "elsewhere/d", "give it a policy with key_prefix", good},
		{"no certificate", c.Endpoints[0], token, "redoubt/d", "refuses this member's certificate, or wants one", config.StoreTLS{CA: a.CA}},
		{"expired certificate", c.Endpoints[0], token, "redoubt/d", "certificate", config.StoreTLS{CA: a.CA, Cert: old, Key: oldKey}},
		{"another authority", c.Endpoints[0], token, "redoubt/d", "check store.tls.ca", config.StoreTLS{CA: other.CA, Cert: client, Key: clientKey}},
		{"no TLS", plain, token, "redoubt/d", "write https://", config.StoreTLS{}},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			secure, err := x.with.Config()
			if err != nil {
				t.Fatal(err)
			}
			s, err := consulstore.Open(consulstore.Options{Endpoints: []string{x.at}, Prefix: x.prefix, Token: x.token, TLS: secure, Log: testLog()})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			limit := time.Second
			if x.want == "" {
				limit = 10 * time.Second
			}
			_, err = s.Swap(within(t, limit), "k", []byte("v"), 0)
			read, readErr := s.Read(within(t, limit), "k")
			switch {
			case x.want == "" && (err != nil || readErr != nil || string(read["k"].Value) != "v"):
				t.Errorf("%v, %v", err, readErr)
			case x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)):
				t.Errorf("want %q: %v", x.want, err)
			case x.want != "" && (readErr == nil || !strings.Contains(readErr.Error(), x.want)):
				t.Errorf("a read: want %q: %v", x.want, readErr)
			}
			if err != nil && errors.Is(err, coord.ErrUnsure) {
				t.Errorf("it was surely not written: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), token) {
				t.Errorf("the token is told: %v", err)
			}
			t.Logf("%v", err)
		})
	}
}
