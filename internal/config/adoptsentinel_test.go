// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"

	"redoubt/internal/topo"
)

func watchedBySentinels() *SentinelAdoption {
	return &SentinelAdoption{
		Name: "mymaster", Shard: AdoptedShard{Primary: "10.0.0.2:6379", Others: []string{"10.0.0.1:6379"}},
		Sentinels: []string{"10.0.0.1:26379", "10.0.0.2:26380", "10.0.0.9:26379"}, Password: `se"cret`, Durability: topo.Async,
		API: "127.0.0.1:7379", Store: 7380, Notification: "/usr/bin/notify",
	}
}

func TestWhatSentinelsWatchBecomesAFileForEachHost(t *testing.T) {
	a := watchedBySentinels()
	files, err := a.Files()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 3 {
		t.Fatalf("%d files, want one for each server's host and one for the Sentinel's", len(files))
	}
	for id, want := range map[string]struct {
		face string
		node bool
	}{"m1": {"10.0.0.2:26380", true}, "m2": {"10.0.0.1:26379", true}, "m3": {"10.0.0.9:26379", false}} {
		c, err := Parse([]byte(files[id]), id, "/")
		if err != nil {
			t.Fatal(err)
		}
		d := c.Deployments[0]
		if !d.OnOrder() || d.Password != a.Password || c.Sentinel.Addresses != "direct" || c.Sentinel.Listen != want.face || (d.Node != nil) != want.node || c.Sentinel.NotificationScript != a.Notification {
			t.Errorf("%s: %+v %+v", id, d, c.Sentinel)
		}
		if s := d.Spec(); s.Nodes[0].Addr != "10.0.0.2:6379" || s.Nodes[0].Priority != 0 || s.Nodes[1].Priority != 1 {
			t.Errorf("%s: the primary is to be preferred: %+v", id, s.Nodes)
		}
	}
	if a.Node("10.0.0.1:6379") != "m2" || a.Node("10.0.0.8:1") != "" {
		t.Errorf("nodes: %s", a.Node("10.0.0.1:6379"))
	}
}

func TestWhatCannotBeAdoptedIsSaid(t *testing.T) {
	for want, edit := range map[string]func(*SentinelAdoption){
		"two servers are on 10.0.0.2": func(a *SentinelAdoption) { a.Shard.Others = []string{"10.0.0.2:6380"} },
		"cannot be a deployment's":    func(a *SentinelAdoption) { a.Name = "my master" },
		"has no host and port":        func(a *SentinelAdoption) { a.Sentinels = []string{"nowhere"} },
		"durability":                  func(a *SentinelAdoption) { a.Durability = "nonsense" },
	} {
		a := watchedBySentinels()
		edit(a)
		if _, err := a.Files(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestASentinelsFileTellsItsSecretsAndPrograms(t *testing.T) {
	c, err := ParseSentinelConf([]byte(`# Generated
port 26379
requirepass "with \"quotes\""
sentinel monitor mymaster 10.0.0.1 6379 2
sentinel auth-pass mymaster 'a b'
SENTINEL auth-user mymaster watcher
sentinel notification-script mymaster /usr/bin/notify
sentinel client-reconfig-script other /usr/bin/reconfig
sentinel known-replica mymaster 10.0.0.2 6379
`), "sentinel.conf")
	if err != nil {
		t.Fatal(err)
	}
	m := c.Masters["mymaster"]
	if c.RequirePass != `with "quotes"` || m.AuthPass != "a b" || m.AuthUser != "watcher" || m.Notification != "/usr/bin/notify" || m.Reconfig != "" || c.Masters["other"].Reconfig != "/usr/bin/reconfig" {
		t.Errorf("%+v", c)
	}
	if s := m.Scripts(); len(s) != 1 || s["notification-script"] != "/usr/bin/notify" {
		t.Errorf("scripts: %v", s)
	}
	if _, err := ParseSentinelConf([]byte("port 1\nrequirepass \"open\n"), "sentinel.conf"); err == nil || !strings.HasPrefix(err.Error(), "sentinel.conf:2: ") {
		t.Errorf("an open quote: %v", err)
	}
}

func TestBeginningOnOrderIsForAttachedServers(t *testing.T) {
	base := string(Sample)
	for _, c := range []struct{ edit, want string }{
		{"    begin: on-order\n", "on-order is for servers that somebody else starts"},
		{"    begin: sometime\n", `"sometime": use at-once or on-order`},
	} {
		text := strings.Replace(base, "    nodes:  ", c.edit+"    nodes:  ", 1)
		if _, err := Parse([]byte(text), "sample", "/"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.edit, err)
		}
	}
}

func TestSettingsOfTheSentinelFaceAreChecked(t *testing.T) {
	for edit, want := range map[string]string{
		"username: me":                                           "sentinel.username: needs sentinel.password too",
		"notification-script: notify":                            "write the absolute path",
		"announce: [{clients: nowhere}]":                         "is not a subnet",
		`announce: [{clients: 10.0.0.0/8, map: {"a:1": "b"}}]`:   "map host:port to host:port",
		`announce: [{clients: 10.0.0.0/8, map: {"a:1": "b:2"}}]`: "",
	} {
		text := strings.Replace(string(Sample), "\nsentinel:\n", "\nsentinel:\n  "+edit+"\n", 1)
		_, err := Parse([]byte(text), "sample", "/")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", edit, err, want)
		}
	}
}
