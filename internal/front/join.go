// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"math"
	"slices"
	"strings"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// join says how the replies of several shards become one. An error of any of them is the answer, unless it forgives.
type join struct {
	kind     joinKind
	forgives bool
	writes   bool    // a part that was refused is not the whole story if another one was done
	section  section // joinInfo: what of the section of shards is shown
}

type joinKind uint8

const (
	joinFirst   joinKind = iota // they say the same
	joinAny                     // one of them succeeded, if any did
	joinSum                     // of numbers
	joinMin                     // of numbers
	joinMax                     // of numbers
	joinMins                    // of arrays of numbers, element by element
	joinInOrder                 // elements in the order of the command's keys
	joinConcat                  // of arrays
	joinUnion                   // of arrays, without what comes twice
	joinPairs                   // arrays of name and number, the greatest number for each
	joinInfo                    // INFO
)

// everywhere returns how the replies to a command become one that concerns all shards; ok is false for all others.
func everywhere(name string, args [][]byte) (j join, ok bool) {
	sub := func(words ...string) bool {
		return len(args) > 1 && slices.ContainsFunc(words, func(w string) bool { return route.Is(args[1], w) })
	}
	switch name {
	case "FLUSHALL", "FLUSHDB", "SWAPDB":
		return join{kind: joinFirst, writes: true}, true
	case "SAVE", "BGSAVE", "BGREWRITEAOF":
		return join{kind: joinFirst}, true
	case "DBSIZE":
		return join{kind: joinSum}, true
	case "KEYS":
		return join{kind: joinConcat}, true
	case "INFO":
		return join{kind: joinInfo, section: shardSection(args)}, true
	case "SCRIPT", "FUNCTION":
		switch {
		case sub("EXISTS"):
			return join{kind: joinMins}, true
		case sub("KILL"):
			return join{kind: joinAny, forgives: true}, true
		}
		return join{kind: joinFirst}, sub("LOAD", "FLUSH", "DELETE", "RESTORE")
	case "CONFIG":
		return join{kind: joinFirst}, sub("SET", "RESETSTAT")
	case "ACL":
		return join{kind: joinFirst}, sub("SETUSER", "DELUSER", "LOAD", "SAVE") || sub("LOG") && len(args) > 2 && route.Is(args[2], "RESET")
	case "MODULE":
		return join{kind: joinFirst}, sub("LOAD", "LOADEX", "UNLOAD")
	case "MEMORY":
		return join{kind: joinFirst}, sub("PURGE")
	case "DEBUG":
		return join{kind: joinFirst}, sub("SET-ACTIVE-EXPIRE", "QUICKLIST-PACKED-THRESHOLD")
	case "SLOWLOG", "LATENCY":
		if sub("LEN") || name == "LATENCY" {
			return join{kind: joinSum}, sub("LEN", "RESET")
		}
		return join{kind: joinFirst}, sub("RESET")
	case "PUBSUB":
		switch {
		case sub("NUMPAT"):
			return join{kind: joinMax}, true
		case sub("CHANNELS", "SHARDCHANNELS"):
			return join{kind: joinUnion}, true
		}
		return join{kind: joinPairs}, sub("NUMSUB", "SHARDNUMSUB")
	}
	return join{}, false
}

// make appends the one reply to dst.
func (j join) make(dst []byte, c *client, x *extra, frames [][]byte) []byte {
	switch j.kind {
	case joinAny:
		for _, f := range frames {
			if f[0] != '-' {
				return append(dst, f...)
			}
		}
	case joinSum, joinMin, joinMax:
		return resp.AppendInt(dst, j.fold(frames))
	case joinMins:
		return joinedMins(dst, frames)
	case joinInOrder:
		return inOrder(dst, x.order, frames)
	case joinConcat:
		return concat(dst, frames)
	case joinUnion:
		return union(dst, frames)
	case joinPairs:
		return pairs(dst, frames)
	case joinInfo:
		return c.mergedInfo(dst, x.parts, frames, j.section)
	}
	return append(dst, frames[0]...)
}

// failed returns the reply to a command one part of which was refused: its error. A write that another shard has carried out has an
// unknown outcome if that error would say that nothing was done, on which clients try again by themselves.
func (j join) failed(frames [][]byte, bad int) []byte {
	done := slices.ContainsFunc(frames, func(f []byte) bool { return f[0] != '-' })
	text := string(resp.Text(frames[bad]))
	code, _, _ := strings.Cut(text, " ")
	if !j.writes || !done || !slices.Contains([]string{"TRYAGAIN", "LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "MOVED", "ASK"}, code) {
		return frames[bad]
	}
	return resp.AppendError(nil, unknownOutcome+"a part of the command was carried out by its shard, another one was refused: "+text)
}

const unknownOutcome = "OUTCOMEUNKNOWN "

func (j join) fold(frames [][]byte) int64 {
	total := int64(0)
	if j.kind == joinMin {
		total = math.MaxInt64
	}
	for _, f := range frames {
		n, _ := resp.Int(f)
		switch j.kind {
		case joinSum:
			total += n
		case joinMin:
			total = min(total, n)
		default:
			total = max(total, n)
		}
	}
	return total
}

func joinedMins(dst []byte, frames [][]byte) []byte {
	least := resp.Elements(frames[0], nil)
	for _, f := range frames[1:] {
		for i, e := range resp.Elements(f, nil) {
			if i >= len(least) {
				break
			}
			a, _ := resp.Int(least[i])
			if b, ok := resp.Int(e); ok && b < a {
				least[i] = e
			}
		}
	}
	return append(resp.AppendArray(dst, len(least)), bytes.Join(least, nil)...)
}

// inOrder puts the elements of several arrays into one; order says of which array each is the next.
func inOrder(dst []byte, order []int, frames [][]byte) []byte {
	rests := make([][]byte, len(frames))
	for i, f := range frames {
		rests[i] = f[bytes.IndexByte(f, '\n')+1:]
	}
	start := len(dst)
	dst = resp.AppendArray(dst, len(order))
	var s resp.Scanner
	for _, part := range order {
		n, err := s.Next(rests[part])
		if err != nil || n == 0 {
			return resp.AppendError(dst[:start], "ERR a shard answered for fewer keys than it was asked for")
		}
		dst = append(dst, rests[part][:n]...)
		rests[part] = rests[part][n:]
	}
	return dst
}

func concat(dst []byte, frames [][]byte) []byte {
	total := 0
	for _, f := range frames {
		total += count(f)
	}
	dst = resp.AppendArray(dst, total)
	for _, f := range frames {
		dst = append(dst, f[bytes.IndexByte(f, '\n')+1:]...)
	}
	return dst
}

// count returns the number of elements that an array's head announces.
func count(f []byte) int {
	n := 0
	for _, c := range f[1:bytes.IndexByte(f, '\r')] {
		if c < '0' || c > '9' {
			return 0
		}
		n = 10*n + int(c-'0')
	}
	return n
}

func union(dst []byte, frames [][]byte) []byte {
	seen := map[string]bool{}
	var all []byte
	for _, f := range frames {
		for _, e := range resp.Elements(f, nil) {
			if !seen[string(e)] {
				seen[string(e)] = true
				all = append(all, e...)
			}
		}
	}
	return append(resp.AppendArray(dst, len(seen)), all...)
}

func pairs(dst []byte, frames [][]byte) []byte {
	most := resp.Elements(frames[0], nil)
	for _, f := range frames[1:] {
		e := resp.Elements(f, nil)
		for i := 1; i < min(len(e), len(most)); i += 2 {
			a, _ := resp.Int(most[i])
			if b, ok := resp.Int(e[i]); ok && b > a {
				most[i] = e[i]
			}
		}
	}
	head := frames[0][:bytes.IndexByte(frames[0], '\n')+1]
	return append(append(dst, head...), bytes.Join(most, nil)...)
}

// wait answers WAIT and WAITAOF: the least of what the shards say to which this client has written.
func (c *client) wait(args [][]byte, raw []byte) {
	c.mu.Lock()
	var wrote []*conn
	for _, k := range c.conns {
		if k != nil && k.wrote {
			wrote = append(wrote, k)
		}
	}
	c.mu.Unlock()
	if len(wrote) < 2 {
		shard := c.f.home()
		if len(wrote) == 1 {
			shard = wrote[0].i
		}
		c.block(shard, raw)
		return
	}
	j := join{kind: joinMin}
	if strings.EqualFold(string(args[0]), "WAITAOF") {
		j.kind = joinMins
	}
	for _, k := range wrote {
		c.part(k, raw)
	}
	c.push(expect{op: opJoin, x: &extra{parts: wrote, join: j}, silent: c.mute, blocks: true}, nil)
	c.settle()
}
