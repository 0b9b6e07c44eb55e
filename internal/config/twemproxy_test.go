// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"redoubt/internal/ring"
)

const nutcrackerFile = `# two pools
alpha:
  listen: 127.0.0.1:22121
  hash: murmur
  hash_tag: "{}"
  distribution: modula
  timeout: 400
  backlog: 1024
  client_connections: 7
  redis: true
  redis_auth: 0123
  redis_db: 3
  preconnect: true
  tcpkeepalive: true
  reuseport: false
  auto_eject_hosts: true
  server_connections: 2
  server_retry_timeout: 2000
  server_failure_limit: 1
  servers:
   - 127.0.0.1:06380:1 first server
   - 127.0.0.1:6381:20
   - ::1:11211:3
beta:
  listen: /run/nutcracker.sock 0660
  redis: true
  servers:
   - /run/redis.sock:1
   - "/run/other redis.sock:1 other"
`

func TestTwemproxyFile(t *testing.T) {
	if _, err := ParseTwemproxy([]byte(nutcrackerFile), "f"); err == nil || !strings.Contains(err.Error(), `f:21: alpha.servers[0]: the weight "1 first"`) {
		t.Fatalf("a name with a space: got %v", err)
	}
	pools, err := ParseTwemproxy([]byte(strings.Replace(nutcrackerFile, "first server", "first", 1)), "f")
	if err != nil {
		t.Fatal(err)
	}
	want := []TwemproxyPool{
		{
			Name: "alpha", Line: 2, Listen: TwemproxyListen{Host: "127.0.0.1", Port: 22121}, Hash: ring.Murmur, HashTag: "{}", Distribution: ring.Modula,
			Timeout: 400, Backlog: 1024, ClientConnections: 7, Redis: true, RedisAuth: "0123", RedisDB: 3, Preconnect: true, TCPKeepalive: true,
			AutoEjectHosts: true, ServerConnections: 2, ServerRetryTimeout: 2000, ServerFailureLimit: 1,
			Servers: []TwemproxyServer{
				{Host: "127.0.0.1", Port: "06380", Weight: 1, Name: "first", Line: 21},
				{Host: "127.0.0.1", Port: "6381", Weight: 20, Name: "127.0.0.1:6381", Line: 22},
				{Host: "::1", Port: "11211", Weight: 3, Name: "::1", Line: 23},
			},
		},
		{
			Name: "beta", Line: 24, Listen: TwemproxyListen{Path: "/run/nutcracker.sock", Mode: 0o660}, Hash: ring.FNV1ax64, Distribution: ring.Ketama,
			Timeout: -1, Backlog: 512, Redis: true, ServerConnections: 1, ServerRetryTimeout: 30000, ServerFailureLimit: 2,
			Servers: []TwemproxyServer{
				{Host: "/run/redis.sock", Weight: 1, Name: "/run/redis.sock:", Line: 28},
				{Host: "/run/other redis.sock", Weight: 1, Name: "other", Line: 29},
			},
		},
	}
	for i := range want {
		if i >= len(pools) || !reflect.DeepEqual(pools[i], want[i]) {
			t.Fatalf("got  %+v\nwant %+v", pools, want)
		}
	}
	var addrs []string
	for _, p := range pools {
		if _, err := ring.New(p.Ring()); err != nil {
			t.Errorf("the ring of %s: %v", p.Name, err)
		}
		for _, s := range p.Servers {
			addrs = append(addrs, s.Addr())
		}
	}
	if got := fmt.Sprint(addrs); got != "[127.0.0.1:6380 127.0.0.1:6381 [::1]:11211 unix:/run/redis.sock unix:/run/other redis.sock]" {
		t.Errorf("addresses: %s", got)
	}
	if s := pools[0].Ring(); s.Distribution != ring.Modula || s.Hash != ring.Murmur || s.HashTag != "{}" || s.Nodes[1] != (ring.Node{Name: "127.0.0.1:6381", Weight: 20}) {
		t.Errorf("the ring of alpha is %+v", s)
	}
}

// TestTwemproxyProblems: each has its line and its setting.
func TestTwemproxyProblems(t *testing.T) {
	const head = "p:\n  listen: 127.0.0.1:1\n  redis: true\n"
	const servers = "  servers:\n  - 127.0.0.1:6379:1\n"
	for text, want := range map[string]string{
		"":                                      "f: the file is empty",
		"p: 1\n":                                "f:1: p: must be a block",
		"- p\n":                                 "f:1: must have a block",
		"p:\n  redis: true\n" + servers:         "f:1: p.listen: is missing",
		head:                                    "f:1: p.servers: is missing",
		head + "  hsah: md5\n" + servers:        "f:4: p.hsah: twemproxy has no such setting",
		head + "  hash: md6\n" + servers:        `f:4: p.hash: "md6" is not one of`,
		head + "  hash: MD5\n" + servers:        `f:4: p.hash: "MD5" is not one of`,
		head + "  redis_auth: \"\"\n" + servers: "f:4: p.redis_auth: must have one value",
		head + "  hash:\n" + servers:            "f:4: p.hash: must have one value",
		head + "  hash_tag: {}\n" + servers:     "f:4: p.hash_tag: must have one value; braces need quotes",
		head + "  hash_tag: \"{\"\n" + servers:  `f:4: p.hash_tag: "{" is not two`,
		head + "  distribution: envoy-ring\n" + servers:          `f:4: p.distribution: "envoy-ring" is not one of`,
		head + "  timeout: -1\n" + servers:                       `f:4: p.timeout: "-1" is not a whole`,
		head + "  timeout: 1s\n" + servers:                       `f:4: p.timeout: "1s" is not a whole`,
		head + "  timeout: 99999999999\n" + servers:              `f:4: p.timeout: "99999999999" is not a whole`,
		head + "  preconnect: yes\n" + servers:                   `f:4: p.preconnect: "yes" is not true or false`,
		head + "  preconnect: True\n" + servers:                  `f:4: p.preconnect: "True" is not true or false`,
		head + "  server_connections: 0\n" + servers:             "f:4: p.server_connections: must not be 0",
		head + "  redis: false\n" + servers:                      "already defined",
		"p:\n  listen: 127.0.0.1:1\n  redis_auth: x\n" + servers: "f:1: p.redis_auth: is only valid with redis: true",
		"p:\n  listen: 127.0.0.1\n" + servers:                    "f:2: p.listen: \"127.0.0.1\" is not host:port",
		"p:\n  listen: 127.0.0.1:0\n" + servers:                  `f:2: p.listen: "0" is not a port`,
		"p:\n  listen: 127.0.0.1:65536\n" + servers:              `f:2: p.listen: "65536" is not a port`,
		"p:\n  listen: /run/s 0999\n" + servers:                  "f:2: p.listen: \"/run/s 0999\": after a space",
		"p:\n  listen: /run/s 1777\n" + servers:                  "f:2: p.listen: \"/run/s 1777\": after a space",
		head + "  servers: 127.0.0.1:1:1\n":                      "f:4: p.servers: must be a list",
		head + "  servers:\n":                                    "f:4: p.servers: must be a list",
		head + servers + "  - 127.0.0.1:6379:2\n":                `f:6: p.servers[1]: a second server with the name "127.0.0.1:6379"`,
		head + servers + "  - 127.0.0.1:6379\n":                  "f:6: p.servers[1]: \"127.0.0.1:6379\" is not host:port:weight",
		head + servers + "  - 127.0.0.1:6380:0\n":                "f:6: p.servers[1]: the weight \"0\"",
		head + servers + "  - 127.0.0.1:6380:x\n":                "f:6: p.servers[1]: the weight \"x\"",
		head + servers + "  - 127.0.0.1:x:1\n":                   "f:6: p.servers[1]: \"x\" is not a port in",
		head + servers + "  - :6380:1\n":                         "f:6: p.servers[1]: \":6380:1\" is not host",
		head + servers + "  - /a:b:1\n":                          "f:6: p.servers[1]: \"/a:b:1\" is not host",
		head + servers + "  - \"127.0.0.1:6380:1 \"\n":           "f:6: p.servers[1]: \"127.0.0.1:6380:1 \" is not host",
		head + servers + "  - a: 1\n":                            "f:6: p.servers[1]: must be host:port:weight",
		head + servers + "q:\n  listen: 127.0.0.1:1\n" + servers: "f:6: q.listen: pool p listens there, too",
	} {
		pools, err := ParseTwemproxy([]byte(text), "f")
		var problems Problems
		if !errors.As(err, &problems) || len(problems) != 1 || !strings.Contains(err.Error(), want) || pools != nil {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
	_, err := ParseTwemproxy([]byte(head+"  hash: a\n  timeout: b\n"+servers), "f")
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two problems are reported as %v", err)
	}
}

// FuzzTwemproxy: whatever the file, there are pools with valid names and servers, or problems.
func FuzzTwemproxy(f *testing.F) {
	f.Add(nutcrackerFile)
	for _, s := range []string{"", "{}", "p: {}", "? a\n: b", "p: &x\n  servers: *x\n", "p:\n  servers:\n  -\n  - - a\n", "p:\n  <<: *a\n", "[a]: b", "p:\n  listen: |\n    a:1\n", "p: !!map\n  redis: true"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		pools, err := ParseTwemproxy([]byte(text), "f")
		if (err == nil) != (len(pools) > 0) {
			t.Fatalf("%d pools, %v", len(pools), err)
		}
		for _, p := range pools {
			if len(p.Servers) == 0 || p.Listen == (TwemproxyListen{}) || len(p.HashTag) != 0 && len(p.HashTag) != 2 {
				t.Fatalf("accepted: %+v", p)
			}
			for _, s := range p.Servers {
				if s.Name == "" || s.Weight == 0 || s.Host == "" {
					t.Fatalf("accepted: %+v", s)
				}
			}
		}
	})
}
