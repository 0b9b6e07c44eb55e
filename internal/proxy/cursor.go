// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"hash/fnv"
	"strconv"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// A cursor of SCAN is a place in the hash table of one server process; on any other one it means nothing, and a scan that
// goes on there misses keys without a word. So a cursor that goes to a client carries a mark of the process that gave it. One
// that comes back to another process starts its scan anew: elements may then come twice, as SCAN allows, but none is missed.
//
// A marked cursor stays below 2⁵³, so that clients which keep numbers as doubles do not lose digits.
const (
	cursorBits = 36 // of the server's part: a table of that many buckets does not fit into any memory
	cursorMask = 1<<cursorBits - 1
	markMax    = 1<<16 - 1
)

// scanNote says where a command in flight has its cursor.
type scanNote struct {
	at, width int // in the command's bytes
	cursor    uint64
}

// markOf returns the mark of a server process; never 0.
func markOf(runID string) uint64 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(runID))
	return uint64(h.Sum32())%markMax + 1
}

// noteCursor prepares a command of the SCAN family. Only a cursor that a proxy has marked needs care.
func noteCursor(it *item, row *route.Row, raw []byte) {
	it.op = opScan
	n := scanNote{}
	var parser resp.Parser
	if got, err := parser.Next(raw, resp.Limits{}); got == len(raw) && err == nil {
		if i := route.CursorIndex(row.Name); i < len(parser.Args) {
			if v, err := strconv.ParseUint(string(parser.Args[i]), 10, 64); err == nil && v > cursorMask {
				n = scanNote{at: offsetOf(raw, parser.Args[i]), width: len(parser.Args[i]), cursor: v}
			}
		}
	}
	if it.x == nil {
		it.x = &extra{}
	}
	it.x.scan = n
}

// offsetOf returns where part, a view on whole, begins in it.
func offsetOf(whole, part []byte) int {
	for at := 0; ; at++ {
		if i := bytes.Index(whole[at:], part); i < 0 {
			return 0
		} else if at += i; &whole[at] == &part[0] {
			return at
		}
	}
}

// unmark writes the cursor that the server with this mark understands into a command; digits keep their number, because
// servers take leading zeros (strtoul in every version).
func (n *scanNote) unmark(command []byte, mark uint64) {
	if n.width == 0 {
		return
	}
	v := n.cursor & cursorMask
	if n.cursor>>cursorBits != mark {
		v = 0
	}
	for i := n.at + n.width - 1; i >= n.at; i-- {
		command[i] = '0' + byte(v%10)
		v /= 10
	}
}

// markNow returns the mark of the present primary; 0 when there is none.
func (p *Proxy) markNow() uint64 {
	if o := p.order.Load(); o.t != nil {
		return markOf(o.t.runID)
	}
	return 0
}

// marked returns a reply to SCAN with the mark in its cursor.
func marked(f []byte, mark uint64) []byte {
	const head = "*2\r\n$"
	rest, ok := bytes.CutPrefix(f, []byte(head))
	if !ok {
		return f
	}
	_, rest, ok = bytes.Cut(rest, []byte("\r\n"))
	if !ok {
		return f
	}
	digits, rest, ok := bytes.Cut(rest, []byte("\r\n"))
	v, err := strconv.ParseUint(string(digits), 10, 64)
	if !ok || err != nil || v == 0 || v > cursorMask {
		return f
	}
	out := make([]byte, 0, len(f)+16)
	out = append(out, "*2\r\n"...)
	out = resp.AppendBulk(out, strconv.FormatUint(mark<<cursorBits|v, 10))
	return append(out, rest...)
}
