// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSourcesAreRead(t *testing.T) {
	t.Setenv("REDOUBT_SOURCE_PASSWORD", "fromthere")
	for _, c := range []struct {
		text, addrs, user, password, master string
		db                                  int
		tls                                 bool
	}{
		{"10.0.0.1:6379", "10.0.0.1:6379", "", "fromthere", "", -1, false},
		{"redis://10.0.0.1:6379/3", "10.0.0.1:6379", "", "fromthere", "", 3, false},
		{"rediss://me:p%40ss@[::1]:6380", "[::1]:6380", "me", "p@ss", "", -1, true},
		{"redis://:secret@h:1,h:2", "h:1 h:2", "", "secret", "", -1, false},
		{"sentinel://s1:26379,s2:26379/shop", "s1:26379 s2:26379", "", "fromthere", "shop", -1, false},
	} {
		s, err := source(migrateFlags{from: c.text})
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if strings.Join(s.At.Addrs, " ") != c.addrs || s.At.User != c.user || s.At.Password != c.password || s.Master != c.master || s.DB != c.db || s.At.TLS != c.tls {
			t.Errorf("%s: %+v", c.text, s)
		}
	}
	for _, bad := range []string{"", "http://h:1", "h", "redis://h:1/x", "redis://h:1,h:2/3", "sentinel://h:1", "redis://u:%zz@h:1", "redis://u:geheim@h"} {
		if _, err := source(migrateFlags{from: bad}); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAPoolIsASource(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nutcracker.yml")
	text := "beta:\n  listen: 127.0.0.1:1\n  hash: murmur\n  distribution: ketama\n  redis: true\n  redis_auth: word\n  redis_db: 2\n  servers:\n   - 10.0.0.1:6379:1\n   - 10.0.0.2:6379:1\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := source(migrateFlags{from: file})
	if err != nil {
		t.Fatal(err)
	}
	owners := map[int]bool{}
	for i := range byte(100) {
		owners[s.Owner([]byte{'k', i})] = true
	}
	if !slices.Equal(s.At.Addrs, []string{"10.0.0.1:6379", "10.0.0.2:6379"}) || s.At.Password != "word" || s.DB != 2 || len(owners) != 2 {
		t.Errorf("%+v, owners %v", s, owners)
	}
	for _, change := range [][2]string{{"redis: true", "redis: false"}, {"ketama", "random"}} {
		other := strings.Replace(text, change[0], change[1], 1)
		if change[1] == "redis: false" {
			other = strings.Replace(other, "  redis_auth: word\n", "", 1)
		}
		if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := source(migrateFlags{from: file}); err == nil {
			t.Errorf("%s is taken", change[1])
		}
	}
}

func TestTargetsAreRead(t *testing.T) {
	dir := t.TempDir()
	p, err := newPlan(21000, 2, 0, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.write(dir); err != nil {
		t.Fatal(err)
	}
	at, err := target(dir)
	if err != nil || !slices.Equal(at.Addrs, []string{"127.0.0.1:21000", "127.0.0.1:21001", "127.0.0.1:21002"}) {
		t.Errorf("%+v, %v", at, err)
	}
	if at, err = target("redis://u:p@h:1"); err != nil || at.User != "u" || at.Password != "p" {
		t.Errorf("%+v, %v", at, err)
	}
	for _, bad := range []string{"", t.TempDir(), "redis://h:1/2", "sentinel://h:1/x", "nowhere"} {
		if _, err := target(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
