// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"redoubt/internal/redis"
	"redoubt/internal/resp"
)

// A change of the acknowledgement rule while the shard runs (SAFETY A7). The name of each connection to the primary carries
// the number of the rule. When it changes, a connection is renamed in the stream of its own commands: behind that nothing is
// sent that a weaker rule would acknowledge, and what was sent before has been executed before. So the primary's agent can
// see at the server itself who has taken the rule, and a barrier that it writes then covers everything of before.

// clientName is the name of the lane's connection under a rule.
func (l *lane) clientName(rule uint64) string {
	prefix := redis.ProxyClientName
	switch {
	case l.errand != "":
		return l.errand + l.p.o.ID
	case l.key.own:
		prefix = redis.PinnedClientName
	}
	return redis.WithRule(prefix+l.p.o.ID, rule)
}

// mayRename reports whether a command of ours may come between those of the client; the caller holds l.mu. Where it may not, the
// primary's agent ends the connection when its table would have expired, and the next one has the right name.
func (l *lane) mayRename(k *link) bool {
	switch {
	case k.to.t == nil, l.key.user != "":
		return false
	case !l.key.own:
		return true
	}
	return l.st.txn == nil && !l.st.monitor && (l.key.proto > 2 || !l.st.subscribed())
}

// rename is the batch that says so; the caller holds l.mu.
func (l *lane) rename(k *link, o *order) *batch {
	k.rule = o.rule
	b := l.p.newBatch()
	b.buf = resp.AppendCommand(b.buf, "CLIENT", "SETNAME", l.clientName(o.rule))
	b.ents = append(b.ents, entry{n: uint32(len(b.buf)), flags: replayed})
	return b
}
