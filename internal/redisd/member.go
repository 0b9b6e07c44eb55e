// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// member is the dialect of a member of a cluster, where REPLICAOF is refused. What freezes it is put together from settings:
//
//   - a primary is closed when it has no port, demands more replicas than there are, and is sealed: paused for writes, which
//     stops expiry and eviction too, and sending no PING, so that its offset is final;
//   - a replica is frozen when its login is good nowhere and it has no link.
//
// Both are said in the words of a server by itself: a replica of the dead address. The server's own word is under rawRole.
//
// A server that somebody else starts keeps its port (attached): without it there would be no way in for the next agent. It is closed
// when it is sealed and demands more replicas than there are; who comes in can read there, and cannot write.
type member struct{ attached bool }

// Fields that read adds to an info.
const (
	rawRole    = "redoubt_raw_role"
	linkState  = "redoubt_link_state" // from ROLE, of a replica
	isUnsealed = "redoubt_unsealed"
	isBarred   = "redoubt_frozen_login"
	isShut     = "redoubt_shut" // no port
	loginUser  = "redoubt_login_user"
	loginWord  = "redoubt_login_word"
)

// The seal. The pause ends with the process, or when the server is opened; the period, which nothing else sets, shows that it
// was ordered, because servers before Redis 7.4 do not tell.
const (
	sealPauseMS = "315360000000" // ten years
	sealPeriod  = "2000000000"   // seconds
	openPeriod  = "1"            // as directives says, and linkSilent expects
)

func (member) look(section ...string) [][]string {
	return [][]string{append([]string{"INFO"}, section...), {"CONFIG", "GET", "port", minReplicas, pingPeriod, "masteruser", "masterauth"}, {"ROLE"}}
}

// lookLen is how many replies belong to a look.
const lookLen = 3

func (d member) read(reps []reply) info {
	m, cfg := parseInfo(reps[0].text), reps[1].pairs()
	m[rawRole] = m["role"]
	login := cfg["masteruser"] == frozenUser
	m[loginUser], m[loginWord] = cfg["masteruser"], cfg["masterauth"]
	shut := cfg["port"] == "0"
	if d.attached {
		shut = cfg[pingPeriod] == sealPeriod
	}
	m[isBarred], m[isShut] = yes(login), yes(shut)
	if len(reps[2].items) > 3 && m["role"] == "slave" {
		m[linkState] = reps[2].items[3].text
	}
	switch {
	case m["role"] == "master" && shut:
		sealed := cfg[minReplicas] == shutReplicas && cfg[pingPeriod] == sealPeriod && login
		m[isUnsealed] = yes(!sealed && !m.loading())
		m.beFrozen()
		m["slave_repl_offset"] = m["master_repl_offset"] // it stands there, with all of its data
	case m["role"] == "slave" && login && !m.linkUp() && !m.syncing() && m.waitsToConnect():
		m.beFrozen()
	}
	return m
}

// beFrozen says in the words of a server by itself that nobody writes there and that it follows nobody.
func (m info) beFrozen() { m["role"], m["master_host"], m["master_port"] = "slave", deadHost, deadPort }

// waitsToConnect: no link is being negotiated, possibly with the login of before.
func (m info) waitsToConnect() bool {
	s := m[linkState]
	return s == "connect" || s == "connecting" || s == "none"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// rawPrimary: it is a primary by its own word, whatever its port.
func (m info) rawPrimary() bool { return m[rawRole] == "master" }

// unsealed: a primary without a port whose offset still moves, as after its start.
func (m info) unsealed() bool { return m[isUnsealed] == "yes" }

// noteBar remembers that every further attempt of this process to get a link presents the frozen login: the one that is
// under way now and then is no reason to freeze it again.
func (n *Node) noteBar(m info) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case m[isBarred] != "yes":
		n.barred = false
	case m.frozen():
		n.barred = true
	case n.barred && m[rawRole] == "slave" && !m.linkUp() && !m.syncing():
		m.beFrozen()
	}
}

func frozenLogin() []string { return []string{"masteruser", frozenUser, "masterauth", frozenWord} }

func configSet(pairs ...string) []string { return append([]string{"CONFIG", "SET"}, pairs...) }

// fence closes a primary: nobody can connect, whoever was connected is cut, nothing moves. Replicas stay attached, to drain
// what they have not got yet. A replica loses its link and its clients by the same order.
func (d member) fence() [][]string {
	shut := configSet(append(frozenLogin(), minReplicas, shutReplicas, pingPeriod, sealPeriod)...)
	if !d.attached {
		shut = append(shut, "port", "0")
	}
	return append([][]string{
		{"MULTI"},
		{"CLIENT", "PAUSE", sealPauseMS, "WRITE"},
		shut,
		{"CLIENT", "KILL", "TYPE", "master"},
		{"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"},
		{"CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"},
		{"EXEC"},
	}, d.look()...)
}

// fenced judges the replies to fence. A replica is fenced when its clients are cut and its login is the frozen one; what it may
// still get from its primary is for Freeze to stop.
func (d member) fenced(reps []reply) (info, error) {
	if err := firstError(reps); err != nil {
		return nil, err
	}
	if err := firstError(reps[6].items); err != nil {
		return nil, err
	}
	m := d.read(reps[7:])
	if m.unsealed() || m[isShut] != "yes" || m[isBarred] != "yes" {
		return nil, errors.New("after the fence the server is not closed")
	}
	return m, nil
}

// seal closes a primary that booted closed for good, and looks again.
func (n *Node) seal(ctx context.Context) (info, map[string]string, error) {
	if err := n.fenceByOrder(ctx); err != nil {
		return nil, nil, fmt.Errorf("seal a primary without a port: %w", err)
	}
	c, err := n.ready(ctx)
	if err != nil {
		return nil, nil, err
	}
	m, cfg, err := n.question(ctx, c, true)
	if err == nil && m.unsealed() {
		err = fmt.Errorf("%w: it does not stay sealed", redis.ErrRefused)
	}
	return m, cfg, err
}

// isShut tells whether the server is closed, so that what keeps it so must stay as it is.
func (n *Node) isShut(ctx context.Context, c *conn) (bool, error) {
	if n.cluster == nil {
		return false, nil
	}
	name, closed := "port", "0"
	if n.managed == nil {
		name, closed = pingPeriod, sealPeriod
	}
	reps, err := c.do(ctx, []string{"CONFIG", "GET", name})
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return false, fmt.Errorf("configure %s: %w", n.addr, err)
	}
	return reps[0].pairs()[name] == closed, nil
}

// survey reads what the server is and how it sees the cluster, on the ready admin connection.
func (n *Node) survey(ctx context.Context) (*conn, info, slots.Nodes, error) {
	c, err := n.ready(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	reps, err := c.do(ctx, append(n.d.look(), clusterNodes())...)
	if err == nil {
		err = firstError(reps[:lookLen])
	}
	if err != nil {
		return nil, nil, nil, err
	}
	m := n.read(reps)
	if err := reps[lookLen].err(); isCode(err, "LOADING") {
		return c, m, nil, fmt.Errorf("%w: it is loading; wait: %w", redis.ErrRefused, err)
	} else if err != nil {
		return c, m, nil, err
	}
	view, err := n.viewOf(reps[lookLen])
	return c, m, view, err
}

// viewOf reads the answer to CLUSTER NODES.
func (n *Node) viewOf(r reply) (slots.Nodes, error) {
	view, _, err := slots.Parse(r.text)
	if err != nil {
		return nil, err
	}
	self, ok := view.Self()
	if !ok || self.ID != n.cluster.ID {
		return nil, fmt.Errorf("%w: its node id is %s, ours is %s: stop it, and remove %s from its directory", redis.ErrRefused, self.ID, n.cluster.ID, nodesConf)
	}
	return view, nil
}

// transact sends a transaction and a look, unless a fence overtakes it, and returns its results and what the server is after it.
func (n *Node) transact(ctx context.Context, c *conn, seq uint64, cmds ...[]string) ([]reply, info, error) {
	all := append([][]string{{"MULTI"}}, cmds...)
	all = append(append(all, []string{"EXEC"}), n.d.look()...)
	at := n.clk.Uptime()
	call, err := c.sendIf(func() bool { return n.fences.Load() == seq }, all...)
	if err != nil {
		return nil, nil, err
	}
	reps, err := call.wait(ctx)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return nil, nil, err
	}
	m := n.read(reps[len(cmds)+2:])
	n.setRole(m.role())
	n.noteReadBack(readBack{m, at, c, seq})
	return reps[len(cmds)+1].items, m, nil
}

// shouldBe turns a result that is not what an order was for into an error.
func shouldBe(ok bool, m info, what string) error {
	if ok {
		return nil
	}
	return fmt.Errorf("%w: it is %q, link %s, and not %s", redis.ErrRefused, m[rawRole], m["master_link_status"], what)
}

// freezeInCluster takes a replica's login, then its link. One that is being negotiated is begun anew, with the frozen login.
func (n *Node) freezeInCluster(ctx context.Context) error {
	seq := n.fences.Load()
	c, m, view, err := n.survey(ctx)
	switch {
	case m != nil && m.frozen() && !m.unsealed(): // also while it is loading
		n.setRole(topo.RoleReplica)
		return nil
	case err != nil:
		return fmt.Errorf("freeze %s: %w", n.addr, err)
	case m.rawPrimary():
		n.setRole(m.role())
		return n.Fence(ctx)
	}
	cmds := [][]string{configSet(frozenLogin()...), {"CLIENT", "KILL", "TYPE", "master"}}
	if self, _ := view.Self(); !m.linkUp() && self.Of != "" {
		cmds = append(cmds, []string{"CLUSTER", "REPLICATE", self.Of}) // an error of this one shows in the look
	}
	res, m, err := n.transact(ctx, c, seq, cmds...)
	if err == nil {
		err = firstError(res[:2])
	}
	if err == nil && !m.frozen() {
		err = fmt.Errorf("its link is in the state %q: it is not frozen yet", m[linkState])
	}
	if err != nil {
		return fmt.Errorf("freeze %s: %w", n.addr, err)
	}
	return nil
}

// followInCluster is Follow for a member of a cluster. A server that was a primary is demoted by the word of the next one, which
// comes by gossip: until then this is an error, and is to be tried again.
func (n *Node) followInCluster(ctx context.Context, addr string, cred redis.Credentials) error {
	wrap := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("follow %s: %w", addr, err)
	}
	c, m, view, err := n.survey(ctx)
	if err == nil && m.role() == topo.RolePrimary { // demotion always cuts the clients (SAFETY A5)
		n.setRole(topo.RolePrimary)
		if err := n.Fence(ctx); err != nil {
			return wrap(err)
		}
		c, m, view, err = n.survey(ctx)
	}
	if err != nil {
		return wrap(err)
	}
	seq := n.fences.Load()
	id := n.cluster.idAt(view, addr)
	self, _ := view.Self()
	primary, known := view.ByID(id)
	if !known {
		return wrap(fmt.Errorf("it does not know that node yet (id %q)", id))
	}
	if m.rawPrimary() && self.Slots != (slots.Set{}) {
		return wrap(fmt.Errorf("it has slots %s and has not heard yet that they are another's", self.Slots))
	}
	if self.Of != id {
		res, now, err := n.transact(ctx, c, seq, []string{"CLUSTER", "REPLICATE", id})
		if err == nil {
			if err = firstError(res); err != nil && m.rawPrimary() && primary.Primary {
				err = n.strand(ctx, err)
			}
		}
		if err != nil {
			return wrap(err)
		}
		m = now
	}
	return wrap(n.hook(ctx, c, m, id, cred, seq))
}

// strand sees to a primary that refused to be a replica, with the reason that it gave: it has keys and no slots, as when its shard's
// slots have moved to another shard, so that nobody's claim demotes it. It starts anew, as the replica that the layout says it is
// (demoted), with its data, and follows when it is told so again.
func (n *Node) strand(ctx context.Context, reason error) error {
	if n.managed == nil {
		return fmt.Errorf("%w: stop it, remove its data files (not %s), and start it again", reason, nodesConf)
	}
	if n.cluster.successor() == "" {
		return fmt.Errorf("%w: it is not known yet whose replica it is", reason)
	}
	n.log.Warn("a primary without slots refuses to be a replica: it starts anew as one", "reason", reason)
	if err := n.Kill(ctx); err != nil {
		return err
	}
	if err := n.Restart(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w: it starts anew as a replica", reason)
}

// hook gives a replica of id the login that its primary demands, opens its port, and sees to its link.
func (n *Node) hook(ctx context.Context, c *conn, m info, id string, cred redis.Credentials, seq uint64) error {
	if m.rawPrimary() {
		return shouldBe(false, m, "a replica")
	}
	user, password := n.login(cred)
	other, down := m[loginUser] != user || m[loginWord] != password, !m.linkUp() && !m.syncing()
	anew := n.mustRenew(m) || down && (other || n.linkIdles(m[linkState]))
	var cmds [][]string
	if other && n.everPromoted(m) { // it may have been demoted by gossip alone, and its clients' connections are of before (SAFETY A5)
		cmds = append(cmds, []string{"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"}, []string{"CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"})
	}
	if other || m[isShut] == "yes" {
		cmds = append(cmds, n.opening(user, password), []string{"CLIENT", "UNPAUSE"})
	}
	if anew {
		cmds = append(cmds, []string{"CLIENT", "KILL", "TYPE", "master"}, []string{"CLUSTER", "REPLICATE", id})
	}
	if len(cmds) == 0 {
		return nil
	}
	res, m, err := n.transact(ctx, c, seq, cmds...)
	if err == nil {
		err = firstError(res)
	}
	if err != nil {
		return err
	}
	n.connecting = 0
	return shouldBe(m[rawRole] == "slave" && m[isBarred] == "no" && m[isShut] == "no", m, "an open replica")
}

// everPromoted tells whether this process was once made a primary.
func (n *Node) everPromoted(m info) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.promoted.RunID == m["run_id"]
}

// opening undoes what keeps a server closed.
func (n *Node) opening(user, password string) []string {
	open := configSet("masteruser", user, "masterauth", password, minReplicas, fmt.Sprint(n.atLeast), pingPeriod, openPeriod)
	if n.managed == nil {
		return open
	}
	return append(open, "port", portOfAddr(n.addr))
}
