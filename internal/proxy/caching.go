// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// CLIENT CACHING speaks of the command behind it (for MULTI, of the whole transaction), and a server forgets it with whatever
// comes in between (resetClient in networking.c, Redis 7.0). Between the two there may be a marker of the proxy's, where a batch ends,
// or a change of primary. A read that a client caches and the server does not track is stale for ever, so the proxy says it again
// where the command does not follow in the same batch, and takes the reply.

const caches = cachesYes | cachesNo

var cachingCommands = map[flags][]byte{
	cachesYes: resp.AppendCommand(nil, "CLIENT", "CACHING", "YES"),
	cachesNo:  resp.AppendCommand(nil, "CLIENT", "CACHING", "NO"),
}

// cache notes a CLIENT CACHING that is queued, or marks the command that it speaks of.
func (st *state) cache(it *item) {
	if it.op != opTracking {
		it.flags |= st.caching
	}
	st.caching = 0
	if it.op == opTracking && len(it.x.words) == 3 && route.Is(it.x.words[1], "CACHING") {
		switch w := it.x.words[2]; {
		case route.Is(w, "YES"):
			st.caching = cachesYes
		case route.Is(w, "NO"):
			st.caching = cachesNo
		}
	}
}

// cache sees to it that a command of these flags, which is added next, comes behind the CLIENT CACHING that speaks of it.
func (b *batch) cache(f flags) {
	command := cachingCommands[f&caches]
	if command == nil {
		return
	}
	if n := len(b.ents); n > 0 {
		if e := &b.ents[n-1]; e.op == opTracking && e.n > 0 && route.Is(e.x.words[1], "CACHING") {
			return
		}
	}
	b.ents = append(b.ents, entry{off: uint32(len(b.buf)), n: uint32(len(command)), flags: replayed})
	b.buf = append(b.buf, command...)
}

// word and flagsOf are for the record of a session that another process goes on with.
func (f flags) word() string {
	switch f & caches {
	case cachesYes:
		return "yes"
	case cachesNo:
		return "no"
	}
	return ""
}

func flagsOf(word string) flags {
	switch word {
	case "yes":
		return cachesYes
	case "no":
		return cachesNo
	}
	return 0
}
