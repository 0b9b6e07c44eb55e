// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/sha1"
	"encoding/hex"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/internal/topo"
)

// lore is what clients of this proxy have told the shard that servers do not replicate: scripts, settings, users. A
// client expects one server that remembers; so every node is told, and again after it has restarted. It is bounded, and
// ends with the proxy: settings that are meant to last belong into the deployment's configuration.
type lore struct {
	wake chan struct{}

	mu      sync.Mutex // guards what follows
	entries []loreEntry
	last    uint64 // number of the latest entry
	bytes   int
	scripts map[string][]byte   // by SHA-1 in lower case
	known   map[uint64]struct{} // hashes of their bodies: EVAL costs no SHA-1 once its script is known
	seed    maphash.Seed
}

// loreEntry is one command that every node has to carry out.
type loreEntry struct {
	number  uint64
	key     string // an entry takes the place of an earlier one with the same key; empty: none
	sha     string // of a script
	command []byte
}

const (
	loreEntries = 2_000
	loreBytes   = 32 << 20
	scriptMax   = 1 << 20         // longer ones are not kept
	loreLook    = 5 * time.Second // between looks whether a node has restarted
	loreRetry   = 200 * time.Millisecond

	loreAtOnce      = 100 // commands on one connection
	loreAtOnceBytes = 4 << 20
)

func newLore() lore {
	return lore{wake: make(chan struct{}, 1), scripts: map[string][]byte{}, known: map[uint64]struct{}{}, seed: maphash.MakeSeed()}
}

// script remembers the body of a script.
func (o *lore) script(body []byte) {
	if len(body) > scriptMax {
		return
	}
	h := maphash.Bytes(o.seed, body)
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.known[h]; known {
		return
	}
	o.known[h] = struct{}{}
	sum := sha1.Sum(body) // the name that the protocol gives to scripts
	sha := hex.EncodeToString(sum[:])
	o.scripts[sha] = slices.Clone(body)
	o.add(loreEntry{key: "script " + sha, sha: sha, command: resp.AppendCommand(nil, []byte("SCRIPT"), []byte("LOAD"), body)})
}

// body returns the script of that name; nil when it is not known.
func (o *lore) body(sha []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.scripts[strings.ToLower(string(sha))]
}

// told remembers a command that the primary has carried out.
func (o *lore) told(args [][]byte) {
	switch {
	case route.Is(args[0], "SCRIPT") && route.Is(args[1], "LOAD"):
		o.script(args[2])
		return
	case route.Is(args[0], "SCRIPT"):
		o.flushScripts()
	}
	key := ""
	if route.Is(args[0], "CONFIG") && len(args) == 4 {
		key = "config " + strings.ToLower(string(args[2]))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.add(loreEntry{key: key, command: resp.AppendCommand(nil, args...)})
}

func (o *lore) flushScripts() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.entries = slices.DeleteFunc(o.entries, func(e loreEntry) bool {
		if e.sha != "" {
			o.bytes -= len(e.command)
		}
		return e.sha != ""
	})
	clear(o.scripts)
	clear(o.known)
}

// add appends an entry; the caller holds o.mu. The oldest ones make room.
func (o *lore) add(e loreEntry) {
	o.last++
	e.number = o.last
	drop := func(i int) {
		old := o.entries[i]
		o.bytes -= len(old.command)
		if old.sha != "" && old.sha != e.sha {
			delete(o.known, maphash.Bytes(o.seed, o.scripts[old.sha]))
			delete(o.scripts, old.sha)
		}
		o.entries = slices.Delete(o.entries, i, i+1)
	}
	if e.key != "" {
		if i := slices.IndexFunc(o.entries, func(old loreEntry) bool { return old.key == e.key }); i >= 0 {
			drop(i)
		}
	}
	o.entries = append(o.entries, e)
	o.bytes += len(e.command)
	for len(o.entries) > loreEntries || o.bytes > loreBytes {
		drop(0)
	}
	o.poke()
}

// poke has the nodes looked at soon.
func (o *lore) poke() { poke(o.wake) }

// since returns what is newer than number, the number of the last of it, and whether there is more.
func (o *lore) since(number uint64) (commands [][]byte, upTo uint64, more bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i, _ := slices.BinarySearchFunc(o.entries, number+1, func(e loreEntry, n uint64) int { return int(int64(e.number) - int64(n)) })
	upTo = o.last
	size := 0
	for _, e := range o.entries[i:] {
		if size += len(e.command); len(commands) > 0 && (len(commands) == loreAtOnce || size > loreAtOnceBytes) {
			return commands, upTo, true
		}
		commands, upTo = append(commands, e.command), e.number
	}
	return commands, max(upTo, number), false
}

func (o *lore) empty() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.entries) == 0
}

// taught is how far a node is.
type taught struct {
	runID  string
	number uint64
}

// teach is the goroutine that tells every node what it has missed.
func (p *Proxy) teach() {
	progress := map[string]taught{}
	timer := time.NewTimer(loreLook)
	defer timer.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.lore.wake:
		case <-timer.C:
		}
		again := loreLook
		snap := p.o.View.Load()
		if snap == nil || p.lore.empty() {
			timer.Reset(again)
			continue
		}
		nodes := slices.Clone(snap.Shard.Spec.Nodes)
		slices.SortStableFunc(nodes, func(a, b topo.Node) int { // the primary first
			return first(b.ID == snap.Shard.Assigned.Primary) - first(a.ID == snap.Shard.Assigned.Primary)
		})
		for _, n := range nodes {
			if !p.teachNode(n.Addr, progress) {
				again = loreRetry
			}
		}
		timer.Reset(again)
	}
}

func first(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// teachNode brings one node up to date and reports whether it is.
func (p *Proxy) teachNode(addr string, progress map[string]taught) bool {
	for {
		was := progress[addr]
		commands, upTo, more := p.lore.since(was.number)
		runID, err := p.carryOut(addr, commands)
		if err != nil {
			p.log.Debug("tell a node what clients have set", "addr", addr, "err", err)
			return false
		}
		if runID != was.runID { // it has forgotten; what was just said to it will be said again
			progress[addr] = taught{runID: runID}
			continue
		}
		progress[addr] = taught{runID, upTo}
		if !more {
			return true
		}
	}
}

// carryOut gives encoded commands to a node, and returns the id of its process. What it refuses is logged.
func (p *Proxy) carryOut(addr string, commands [][]byte) (runID string, err error) {
	k, err := p.errand(addr)
	if err != nil {
		return "", err
	}
	defer k.conn.Close()
	if _, err := k.conn.Write(slices.Concat(commands...)); err != nil {
		return "", err
	}
	for _, c := range commands {
		f, err := k.frameNow()
		if err != nil {
			return "", err
		}
		if f[0] == '-' {
			var parser resp.Parser
			if n, _ := parser.Next(c, resp.Limits{}); n > 0 {
				p.log.Warn("a node refused what the primary accepted", "addr", addr, "command", string(parser.Args[0])+" "+string(parser.Args[1]), "reply", string(resp.Text(f)))
			}
		}
	}
	return k.runID, nil
}

// heal sends an EVALSHA once more, as EVAL: the server did not know the script, and nothing was executed. It reports false
// when the script is not known here either.
func (k *link) heal(b *batch, e *entry, refusal []byte) bool {
	var parser resp.Parser
	if n, err := parser.Next(b.bytes(e), resp.Limits{}); n == 0 || err != nil || len(parser.Args) < 3 {
		return false
	}
	body := k.l.p.lore.body(parser.Args[1])
	if body == nil {
		return false
	}
	args := slices.Clone(parser.Args)
	args[0], args[1] = []byte("EVAL"), body
	if len(parser.Args[0]) > len("EVALSHA") {
		args[0] = []byte("EVAL_RO")
	}
	l := k.l
	l.mu.Lock()
	l.moveToRedo(b, e, nil)
	r := &l.redo[slices.IndexFunc(l.redo, func(r entry) bool { return r.s == e.s && r.seq == e.seq })]
	r.op, r.x.data, r.x.canned = opNone, resp.AppendCommand(nil, args...), slices.Clone(refusal)
	r.n = uint32(len(r.x.data))
	l.mu.Unlock()
	l.p.lore.poke()
	l.nudge()
	return true
}

// careful notes what a command needs besides its way.
func (s *session) careful(it *item, row *route.Row, args [][]byte, raw []byte) {
	switch row.Care {
	case route.Cursor:
		noteCursor(it, row, raw)
	case route.Eval:
		if len(args) > 2 {
			s.p.lore.script(args[1])
		}
	case route.EvalSHA:
		it.op = opEvalSHA
	case route.Everywhere:
		if route.IsEverywhere(args) {
			it.op = opEverywhere
			words := make([][]byte, len(args))
			for i, a := range args {
				words[i] = slices.Clone(a)
			}
			it.x = &extra{words: words}
		}
	}
}
