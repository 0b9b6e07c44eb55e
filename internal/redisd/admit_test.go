// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/test/ports"
)

// adminClient is a client connection as our own user, whose password lies in the node's directory.
func adminClient(t testing.TB, addr, dir string) *conn {
	t.Helper()
	secret, err := seatSecret(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dial(within(t, 2*time.Second), addr, append(authCommand(adminUser, secret), []string{"PING"}), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// stranger runs a plain server that replicates from p, as a forgotten replica or a stray REPLICAOF would.
func stranger(t *testing.T, p *Node, args ...string) *conn {
	t.Helper()
	addr := ports.Addr(t)
	supervised(t, addr, t.TempDir(), append([]string{"--replicaof", "127.0.0.1 " + fmt.Sprint(portOf(p.addr))}, args...)...)
	see(t, attach(t, AttachOptions{Addr: addr}), "the stranger", isUp)
	return client(t, addr, "")
}

// refused ends the test if the stranger is ever attached within a while, or counted by WAIT.
func refused(t *testing.T, p *Node, s, c *conn, acknowledged int64) {
	t.Helper()
	must(t, c, "SET", "secret", "1")
	if got := must(t, c, "WAIT", "2", "1500").num; got != acknowledged {
		t.Fatalf("WAIT counts %d replicas, want %d", got, acknowledged)
	}
	if m := parseInfo(must(t, s, "INFO", "replication").text); m["master_link_status"] != "down" {
		t.Fatalf("the stranger's link is %s", m["master_link_status"])
	}
	if got := must(t, s, "DBSIZE").num; got != 0 {
		t.Fatalf("the stranger has %d keys", got)
	}
	if o := p.Observe(within(t, time.Second)); len(o.Replicas) != int(acknowledged) {
		t.Fatalf("attached: %v", o.Replicas)
	}
}

func TestAStrangersReplicaStaysOutAndIsNotCounted(t *testing.T) {
	t.Parallel()
	p := primary(t, nil)
	s := stranger(t, p)
	refused(t, p, s, client(t, p.addr, ""), 0)
	see(t, p, "the stranger named", func(o redis.Observation) bool {
		return len(o.Problems) == 1 && strings.HasPrefix(o.Problems[0], "stranger-refused: a server at 127.0.0.1 ")
	})
	must(t, s, "REPLICAOF", "NO", "ONE")
	see(t, p, "the end of it", func(o redis.Observation) bool { return len(o.Problems) == 0 })
}

func TestThePasswordOfTheDeploymentIsNotEnoughToReplicate(t *testing.T) {
	t.Parallel()
	const password = `pass "word" \ ü`
	withPassword := func(o *Options) { o.Password = password }
	p, r := primary(t, withPassword), open(t, withPassword)
	c := client(t, p.addr, password)
	if got := must(t, c, "ACL", "WHOAMI").text; got != "default" {
		t.Fatalf("the password is that of %s", got)
	}
	if err := run(t, client(t, p.addr, ""), "GET", "k").err(); !isCode(err, "NOAUTH") {
		t.Fatalf("without the password: %v", err)
	}
	follow(t, r, p)
	s := stranger(t, p, "--masterauth", password)
	refused(t, p, s, c, 1)
	if _, _, err := r.PrimaryPosition(within(t, time.Second), p.addr); err != nil {
		t.Fatal(err)
	}
}

func TestNobodyElseCanChangeWhatAManagedServerIs(t *testing.T) {
	t.Parallel()
	p := primary(t, func(o *Options) {
		o.Directives = map[string]string{"user": "alice on nopass ~* &* +@all", "rename-command": `SHUTDOWN ""`}
	})
	c := client(t, p.addr, "")
	must(t, c, "ACL", "SETUSER", "bob", "on", "nopass", "~*", "+@all")
	if err := p.Configure(within(t, time.Second), redis.Settings{Admit: tenure()}); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"default", "alice", "bob"} {
		must(t, c, "AUTH", user, "any")
		for _, cmd := range [][]string{{"REPLICAOF", "127.0.0.1", "1"}, {"SLAVEOF", "NO", "ONE"}, {"FAILOVER"}, {"PSYNC", "?", "-1"}, {"SYNC"}} {
			if err := run(t, c, cmd...).err(); !isCode(err, "NOPERM") {
				t.Errorf("%s as %s: %v", cmd[0], user, err)
			}
		}
	}
	must(t, c, "SET", "k", "v")
	if o := see(t, p, "the primary", isUp); o.Frozen || o.Role != "primary" {
		t.Fatalf("after all that: %+v", o)
	}
}

func TestWhoComesInAfterTheRulesWereChangedIsCutAgain(t *testing.T) {
	t.Parallel()
	p, r := primary(t, nil), open(t, nil)
	follow(t, r, p)
	c := client(t, p.addr, "")
	must(t, c, "ACL", "DELUSER", redis.ReplicationUser)
	must(t, c, "ACL", "SETUSER", "default", "+psync", "+sync")
	s := stranger(t, p)
	see(t, p, "the stranger attached", func(redis.Observation) bool {
		return strings.Contains(must(t, s, "INFO", "replication").text, "master_link_status:up")
	})
	demand := redis.Settings{Admit: tenure()}
	if err := p.Configure(within(t, time.Second), demand); err != nil {
		t.Fatal(err)
	}
	see(t, r, "the replica back", func(o redis.Observation) bool { return o.LinkUp })
	see(t, p, "the stranger cut", func(o redis.Observation) bool { return slices.Equal(o.Replicas, []string{r.addr}) })
	if err := p.Configure(within(t, time.Second), demand); err != nil {
		t.Fatal(err)
	}
	if o := r.Observe(within(t, time.Second)); !o.LinkUp {
		t.Fatal("a Configure without need cut the replica")
	}
}

func TestAnAttachedServerAdmitsTheRosterAlone(t *testing.T) {
	t.Parallel()
	addr := ports.Addr(t)
	supervised(t, addr, t.TempDir(), append(FrozenArguments(), "--user", "keeper", "on", ">key", "~*", "&*", "+@all")...)
	p := attach(t, AttachOptions{Addr: addr, Username: "keeper", Password: "key"})
	o := see(t, p, "the server", isUp)
	if o.Open || len(o.Problems) > 0 {
		t.Fatalf("attached: %+v", o)
	}
	promote(t, p)
	r := open(t, nil)
	follow(t, r, p)
	refused(t, p, stranger(t, p), client(t, addr, ""), 1)
}

func TestAnAttachedServerWhoseRulesCannotBeChangedIsOpenAndSaysSo(t *testing.T) {
	t.Parallel()
	addr := ports.Addr(t)
	supervised(t, addr, t.TempDir(), append(FrozenArguments(), "--user", "keeper", "on", ">key", "~*", "&*", "+@all", "-acl")...)
	p := attach(t, AttachOptions{Addr: addr, Username: "keeper", Password: "key"})
	o := see(t, p, "the server", isUp)
	if !o.Open || len(o.Problems) != 1 || !strings.HasPrefix(o.Problems[0], "replication-open: ") {
		t.Fatalf("attached: %+v", o)
	}
	if _, err := p.Promote(within(t, time.Second), electedOf(o), redis.Credentials{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Configure(within(t, time.Second), redis.Settings{}); err != nil {
		t.Fatal(err)
	}
	r := attach(t, AttachOptions{Addr: ports.Addr(t), Username: "keeper", Password: "key"})
	supervised(t, r.addr, t.TempDir(), append(FrozenArguments(), "--user", "keeper", "on", ">key", "~*", "&*", "+@all", "-acl")...)
	see(t, r, "the replica", isUp)
	if err := r.Follow(within(t, time.Second), addr, redis.Credentials{}); err != nil {
		t.Fatal(err)
	}
	see(t, r, "the link", func(o redis.Observation) bool { return o.LinkUp })
}

func TestAManagedServerWithAnACLFileIsCommandedAsTheDefaultUser(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "users.acl")
	if err := os.WriteFile(file, []byte("user default on nopass ~* &* +@all\nuser alice on nopass ~* +@read\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := primary(t, func(o *Options) { o.Directives = map[string]string{"aclfile": file} })
	s := stranger(t, p)
	c := client(t, p.addr, "")
	refused(t, p, s, c, 0)
	must(t, c, "ACL", "LOAD") // forgets who may replicate
	if err := p.Configure(within(t, time.Second), redis.Settings{Admit: tenure()}); err != nil {
		t.Fatal(err)
	}
	follow(t, open(t, nil), p)
}

func TestAnOrderWithoutASecretLeavesReplicationOpen(t *testing.T) {
	t.Parallel()
	withPassword := func(o *Options) { o.Password = "pw" }
	p, r := open(t, withPassword), open(t, withPassword)
	o := see(t, p, "the server", isUp)
	see(t, r, "the server", isUp)
	if _, err := p.Promote(within(t, time.Second), electedOf(o), redis.Credentials{}); err != nil {
		t.Fatal(err)
	}
	for _, cred := range []redis.Credentials{tenure(), {}} { // the login of an earlier tenure is taken back
		if err := r.Follow(within(t, time.Second), p.addr, cred); err != nil {
			t.Fatal(err)
		}
	}
	see(t, r, "the link", func(o redis.Observation) bool { return o.LinkUp })
	if err := p.Configure(within(t, time.Second), redis.Settings{}); err != nil {
		t.Fatal(err)
	}
	if o := r.Observe(within(t, time.Second)); !o.LinkUp {
		t.Fatal("cut by Configure")
	}
}

func TestSecretsHideThemselvesWhenPrinted(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if got := fmt.Sprintf(verb, redis.Settings{Admit: tenure()}); strings.Contains(got, string(tenure().Secret)+`"`) || strings.Contains(got, ":tenure") {
			t.Errorf("%s shows %s", verb, got)
		}
	}
}
