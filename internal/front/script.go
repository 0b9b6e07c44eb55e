// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"hash/maphash"
	"slices"
	"strings"
	"sync"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// lore is what clients of this front have loaded: a client expects that a script which it has loaded, or run, is known wherever
// its keys are. It is bounded; what it forgets is answered with the shard's NOSCRIPT, which clients expect, too.
type lore struct {
	shards int

	mu        sync.Mutex // guards what follows
	scripts   map[string]*loreScript
	known     map[uint64]*loreScript // by a hash of their bodies: EVAL costs no SHA-1 once its script is known
	oldest    []*loreScript
	bytes     int
	functions [][]byte // bodies of FUNCTION LOAD
	seed      maphash.Seed
}

type loreScript struct {
	sha  string
	body []byte
	hash uint64
	on   []bool // by shard: it has the script
}

// reach makes room for a shard that came later.
func (s *loreScript) reach(shard int) {
	for len(s.on) <= shard {
		s.on = append(s.on, false)
	}
}

const (
	loreScripts   = 2_000
	loreBytes     = 32 << 20
	loreOne       = 1 << 20 // longer ones are not kept
	loreFunctions = 100
	repeatMax     = 64 << 10 // bytes of a command that is kept so that it can be repeated
)

func newLore(shards int) lore {
	return lore{shards: shards, scripts: map[string]*loreScript{}, known: map[uint64]*loreScript{}, seed: maphash.MakeSeed()}
}

// script remembers the body of a script, and that a shard has it (all of them: -1).
func (o *lore) script(body []byte, shard int) {
	if len(body) > loreOne {
		return
	}
	h := maphash.Bytes(o.seed, body)
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.known[h]
	if s == nil || !bytes.Equal(s.body, body) {
		sum := sha1.Sum(body) // the name that the protocol gives to scripts
		s = &loreScript{sha: hex.EncodeToString(sum[:]), body: bytes.Clone(body), hash: h, on: make([]bool, o.shards)}
		o.scripts[s.sha], o.known[h] = s, s
		o.oldest = append(o.oldest, s)
		o.bytes += len(body)
		for len(o.oldest) > loreScripts || o.bytes > loreBytes {
			old := o.oldest[0]
			o.oldest = slices.Delete(o.oldest, 0, 1)
			o.bytes -= len(old.body)
			delete(o.scripts, old.sha)
			delete(o.known, old.hash)
		}
	}
	s.reach(shard)
	for i := range s.on {
		s.on[i] = s.on[i] || shard == i || shard < 0
	}
}

// missing returns a script that is known, but not to that shard, which is supposed to get it now; nil: none.
func (o *lore) missing(sha []byte, shard int) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.scripts[strings.ToLower(string(sha))]
	if s == nil {
		return nil
	}
	if s.reach(shard); s.on[shard] {
		return nil
	}
	s.on[shard] = true
	return s.body
}

// lacks notes that a shard has lost a script, and returns it; nil when it is not known here either.
func (o *lore) lacks(sha []byte, shard int) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.scripts[strings.ToLower(string(sha))]
	if s == nil {
		return nil
	}
	s.reach(shard)
	s.on[shard] = false
	return s.body
}

func (o *lore) flushScripts() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.scripts)
	clear(o.known)
	o.oldest, o.bytes = nil, 0
}

func (o *lore) function(body []byte) {
	if len(body) > loreOne {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.ContainsFunc(o.functions, func(f []byte) bool { return bytes.Equal(f, body) }) {
		o.functions = append(o.functions, bytes.Clone(body))
	}
	if len(o.functions) > loreFunctions {
		o.functions = slices.Delete(o.functions, 0, 1)
	}
}

func (o *lore) flushFunctions() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.functions = nil
}

// learn looks at commands that load scripts and functions, or drop them.
func (c *client) learn(name string, args [][]byte) {
	if len(args) < 2 {
		return
	}
	o := &c.f.lore
	switch {
	case name == "SCRIPT" && route.Is(args[1], "LOAD") && len(args) == 3:
		o.script(args[2], -1)
	case name == "SCRIPT" && route.Is(args[1], "FLUSH"):
		o.flushScripts()
	case name == "FUNCTION" && route.Is(args[1], "LOAD") && len(args) > 2:
		o.function(args[len(args)-1])
	case name == "FUNCTION" && (route.Is(args[1], "FLUSH") || route.Is(args[1], "DELETE") || route.Is(args[1], "RESTORE")):
		o.flushFunctions()
	}
}

// script passes EVAL, EVALSHA, FCALL and their relatives to the shard of their keys. It reports false for what is the server's to
// refuse.
func (c *client) script(v route.Verdict, args [][]byte, raw []byte) bool {
	if len(args) < 3 {
		return false
	}
	shard, text := c.shardOf(v, args)
	if text != "" {
		c.refuse(text)
		return true
	}
	k := c.connTo(shard)
	if k == nil {
		return true
	}
	writes := v.Class != route.Read
	if v.Row.Care == route.Eval {
		c.f.lore.script(args[1], shard)
		c.send(expect{from: k, silent: c.mute}, raw, writes)
		return true
	}
	if v.Row.Care == route.EvalSHA {
		c.tellScript(k, args[1])
	}
	x := &extra{row: v.Row.Name}
	if len(raw) <= repeatMax {
		x.raw = bytes.Clone(raw)
	}
	c.send(expect{op: opScript, from: k, x: x, silent: c.mute}, raw, writes)
	return true
}

// tellScript has a shard load a script that is known here and, as far as is known, not there.
func (c *client) tellScript(k *conn, sha []byte) {
	if body := c.f.lore.missing(sha, k.i); body != nil {
		c.push(expect{op: opDrop, from: k}, resp.AppendCommand(nil, []byte("SCRIPT"), []byte("LOAD"), body))
	}
}

// repeat looks at an error of a script: if the shard only lacks what is known here, and the client has asked nothing else of it
// meanwhile, it is told and asked once more. The caller holds c.mu.
func (c *client) repeat(e *expect, f []byte) bool {
	k, x := e.from, e.x
	var load [][]byte
	switch {
	case bytes.HasPrefix(f, []byte("-NOSCRIPT ")):
		var p resp.Parser
		if n, err := p.Next(x.raw, resp.Limits{}); n == 0 || err != nil {
			return false
		}
		if body := c.f.lore.lacks(p.Args[1], k.i); body != nil {
			load = append(load, resp.AppendCommand(nil, []byte("SCRIPT"), []byte("LOAD"), body))
		}
	case bytes.HasPrefix(f, []byte("-ERR Function not found")):
		c.f.lore.mu.Lock()
		for _, body := range c.f.lore.functions {
			load = append(load, resp.AppendCommand(nil, []byte("FUNCTION"), []byte("LOAD"), body))
		}
		c.f.lore.mu.Unlock()
	}
	if len(load) == 0 || x.raw == nil || k.owed > 1 {
		return false
	}
	c.take(k)
	for _, l := range load {
		k.out.buf = append(k.out.buf, l...)
	}
	k.out.buf = append(k.out.buf, x.raw...)
	k.owed += len(load) + 1
	x.before, x.raw = len(load), nil
	c.retried = append(c.retried, k)
	return true
}
