// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/redis"
)

// Who may replicate (SAFETY A7) and who may change what a server is (A11) is said by the server's own ACLs (Redis 6.0 and
// later). WAIT counts anybody who replicates, so nobody may but the holders of the tenure's secret.

// adminUser is our own user on a managed server. All others lose what only we may do.
const adminUser = "redoubt-admin"

// aclRefusal is the key under which the settings that were read carry why the server's ACLs cannot be changed.
const aclRefusal = "acl refusal"

// aclTurnedAway is the key for where those come from that tried to replicate and may not.
const aclTurnedAway = "acl turned away"

const (
	aclLogMax   = "16" // entries of the server's own log that are read; equal ones are one entry there
	aclLogFresh = 3.0  // seconds: an entry that was not repeated since is over
)

// turnedAway reads the reply to ACL LOG (6.0 and later): the host of the latest who was refused PSYNC or SYNC a moment ago.
// A login with another epoch's secret is not meant: the roster's own nodes may be late.
func turnedAway(log reply) string {
	for _, entry := range log.items {
		e := entry.pairs()
		age, err := strconv.ParseFloat(e["age-seconds"], 64)
		if object := strings.ToLower(e["object"]); err != nil || age > aclLogFresh || e["reason"] != "command" || object != "psync" && object != "sync" {
			continue
		}
		for field := range strings.FieldsSeq(e["client-info"]) {
			if addr, ok := strings.CutPrefix(field, "addr="); ok {
				host, _, _ := net.SplitHostPort(addr)
				return host
			}
		}
	}
	return ""
}

// ours takes away the commands that only our own user may run on a managed server, as rules. One that the directives rename
// is hidden already, and older servers refuse a rule about it.
func (o Options) ours() []string {
	rules := []string{}
	if o.Cluster != nil {
		rules = clusterRules()
	}
	rules = append(rules, "-replicaof", "-slaveof", "-failover", "-psync", "-sync", "-shutdown")
	for name, value := range o.Directives {
		if !strings.EqualFold(name, "rename-command") {
			continue
		}
		for line := range strings.Lines(value) {
			if f := strings.Fields(strings.ToLower(line)); len(f) > 0 {
				rules = slices.DeleteFunc(rules, func(r string) bool { return r == "-"+f[0] })
			}
		}
	}
	return rules
}

// hashed is a password in the form in which an ACL rule may carry it without the password itself.
func hashed(password string) string {
	sum := sha256.Sum256([]byte(password))
	return "#" + hex.EncodeToString(sum[:])
}

// newSecret makes a password for our own user.
func newSecret() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // it never returns an error (crypto/rand, Go 1.24)
	return hex.EncodeToString(b)
}

// admission are the commands after which only replicas with cred are accepted. A replica sends PING, AUTH, REPLCONF and
// PSYNC, then REPLCONF ACK (replication.c, Redis 6.2 to 7.4); the second channel of a full sync in Valkey 8 sends SYNC.
// Without credentials, whoever may log in as the default user replicates.
func (n *Node) admission(cred redis.Credentials) [][]string {
	if !cred.Open() {
		return [][]string{
			{"ACL", "SETUSER", redis.ReplicationUser, "reset", "on", hashed(string(cred.Secret)), "+psync", "+sync", "+replconf", "+ping"},
			{"ACL", "SETUSER", "default", "-psync", "-sync"},
		}
	}
	if n.cannotAdmit() || n.username != "" { // another user than the default one is its owner's affair
		return nil
	}
	return [][]string{{"ACL", "SETUSER", "default", "+psync", "+sync"}}
}

// admissionProbe asks for what admission will: whether a server's access rules may be changed shows only in the attempt. It
// gives nothing to anybody: without admission that user is off and has no password.
func admissionProbe() []string {
	return []string{"ACL", "SETUSER", redis.ReplicationUser, "+psync", "+sync", "+replconf", "+ping"}
}

// cannotAdmit tells whether the server, at the last look, refused to have its ACLs changed.
func (n *Node) cannotAdmit() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cfg[aclRefusal] != ""
}

// admit keeps the ACLs as the order wants them, and is a no-op while nobody changes them. Replicas that came in meanwhile
// as another user are cut.
func (n *Node) admit(ctx context.Context, c *conn, cred redis.Credentials) error {
	if n.managed == nil && cred.Open() {
		return nil
	}
	list := []string{"ACL", "LIST"}
	reps, err := c.do(ctx, list)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return fmt.Errorf("read the access rules of %s: %w", n.addr, err)
	}
	rules := reps[0].words()
	mover := n.moverSecret()
	if cred == n.admitted && slices.Equal(rules, n.rules) && mover == n.movers {
		return nil
	}
	cmds := append(n.restrictions(rules, cred), moverRules(rules, mover)...)
	if reps, err = c.do(ctx, append(cmds, list)...); err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return fmt.Errorf("set the access rules of %s: %w", n.addr, err)
	}
	n.admitted, n.rules, n.movers = cred, reps[len(reps)-1].words(), mover
	return nil
}

// moverSecret is the password of who moves slots; empty: nobody does.
func (n *Node) moverSecret() string {
	if n.managed != nil && n.managed.o.Mover != nil {
		return n.managed.o.Mover()
	}
	if n.cluster == nil || n.cluster.Mover == nil {
		return ""
	}
	return n.cluster.Mover()
}

// moverRules give who moves slots its own user, for as long as there is something to move: it may do with keys, slots and the stream what it
// has to, and nothing to the server.
func moverRules(rules []string, secret string) [][]string {
	switch {
	case secret != "":
		return [][]string{{"ACL", "SETUSER", redis.MoverUser, "reset", "on", hashed(secret), "~*", "&*", "+@all", "-@dangerous", "+restore", "+keys", "+sort", "+info", "+client", "+cluster", "-cluster|reset", "-cluster|failover",
			"-cluster|replicate", "-cluster|flushslots", "+psync", "+replconf", "+config|get", "+role"}}
	case slices.ContainsFunc(rules, func(r string) bool { return strings.HasPrefix(r, "user "+redis.MoverUser+" ") }):
		return [][]string{{"ACL", "DELUSER", redis.MoverUser}}
	}
	return nil
}

// restrictions are the commands that bring the access rules into order.
func (n *Node) restrictions(rules []string, cred redis.Credentials) [][]string {
	var cmds [][]string
	others := []string{"default"}
	if user, _ := n.adminLogin(); user == adminUser && n.managed != nil {
		others = usersOf(rules)
		for _, u := range others {
			take := n.managed.o.ours()
			if cred.Open() && u == "default" { // on an open primary it is the one that replicas use
				take = slices.DeleteFunc(take, func(c string) bool { return c == "-psync" || c == "-sync" })
			}
			cmds = append(cmds, append([]string{"ACL", "SETUSER", u}, take...))
		}
	}
	if cred.Open() {
		return cmds
	}
	cmds = append(cmds, n.admission(cred)...)
	for _, u := range others {
		cmds = append(cmds, []string{"CLIENT", "KILL", "TYPE", "replica", "USER", u})
	}
	return cmds
}

// usersOf names the users in the reply to ACL LIST, without our own.
func usersOf(rules []string) []string {
	var out []string
	for _, r := range rules {
		f := strings.Fields(r)
		if len(f) > 1 && f[0] == "user" && f[1] != adminUser && f[1] != redis.ReplicationUser && f[1] != redis.MoverUser {
			out = append(out, f[1])
		}
	}
	return out
}

// login is what this server presents to a primary that demands cred.
func (n *Node) login(cred redis.Credentials) (user, password string) {
	if cred.Open() {
		return n.username, n.password
	}
	return redis.ReplicationUser, string(cred.Secret)
}

// relogin returns the commands that make this server present what cred demands; none when it does already. has is what
// CONFIG GET shows now. A server whose primary demands nothing keeps what its owner configured.
func (n *Node) relogin(has map[string]string, cred redis.Credentials) [][]string {
	user, password := n.login(cred)
	if password == "" && has["masteruser"] != redis.ReplicationUser {
		return nil
	}
	if has["masteruser"] == user && has["masterauth"] == password {
		return nil
	}
	return loginAs(user, password)
}

func loginAs(user, password string) [][]string {
	return [][]string{{"CONFIG", "SET", "masteruser", user}, {"CONFIG", "SET", "masterauth", password}}
}

func loginQuestions() [][]string { return configGets([]string{"masteruser", "masterauth"}) }
