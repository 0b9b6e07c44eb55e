// SPDX-License-Identifier: Apache-2.0

// Package resp reads and writes RESP2 and RESP3 over byte slices: commands as a server sees them, replies as a client
// sees them. It is not for sockets, and it interprets nothing. Its invariant: a frame is the same wherever the input
// was split, nothing behind the frame is read, and nothing is allocated per frame once buffers have grown. It has no
// goroutines; its values belong to one caller each.
package resp

import (
	"bytes"
	"math"
)

// ProtocolError is what a server answers before it closes the connection, without the leading "-ERR ".
type ProtocolError string

// Error returns the text.
func (e ProtocolError) Error() string { return string(e) }

// The protocol errors of networking.c (Redis 7.0.15).
const (
	ErrMultibulk      ProtocolError = "Protocol error: invalid multibulk length"
	ErrBulk           ProtocolError = "Protocol error: invalid bulk length"
	ErrInlineTooBig   ProtocolError = "Protocol error: too big inline request"
	ErrCountTooBig    ProtocolError = "Protocol error: too big mbulk count string"
	ErrBulkTooBig     ProtocolError = "Protocol error: too big bulk count string"
	ErrQuotes         ProtocolError = "Protocol error: unbalanced quotes in request"
	ErrUnauthMulti    ProtocolError = "Protocol error: unauthenticated multibulk length"
	ErrUnauthBulk     ProtocolError = "Protocol error: unauthenticated bulk length"
	lineMax                         = 64 << 10 // PROTO_INLINE_MAX_SIZE
	unauthArgsMax                   = 10
	unauthBulkMax                   = 16384
	defaultBulkMax                  = 512 << 20 // proto-max-bulk-len
	spansKept                       = 1024
	quotedKept                      = lineMax
	multibulkArgCount               = math.MaxInt32
)

// Limits bound one command. The zero value means the server's defaults.
type Limits struct {
	Bulk   int  // bytes of one argument; 0: 512 MB
	Unauth bool // the stricter limits before authentication (Redis 6.2+): 10 arguments of 16 kB
}

type span struct{ from, to int }

// Parser reads commands. Between calls it remembers how far it got in an incomplete command, so that a command that
// arrives in many pieces is scanned once.
type Parser struct {
	// Args are the arguments of the command that Next completed: views on the buffer that was given to it (or, for an
	// inline command with quotes, on the parser's own memory). Valid until the next call.
	Args [][]byte
	// Inline reports that the command was not an array: its bytes cannot be forwarded as they are.
	Inline bool

	spans  []span
	want   int // arguments that the header announced; 0: header not read yet
	pos    int // bytes scanned
	bulk   int // length of the argument being read; -1: its header is next
	quoted []byte
}

// Next looks at buf, which starts with the first byte of a command and, after an incomplete call, again with the same
// bytes and more. It returns the command's length, or 0 when more bytes are needed. A complete command may have no
// arguments (an empty line, or an array of none): skip it. Errors are ProtocolErrors; the parser is then of no use.
func (p *Parser) Next(buf []byte, lim Limits) (n int, err error) {
	if p.pos == 0 {
		if len(buf) == 0 {
			return 0, nil
		}
		if buf[0] != '*' {
			return p.inline(buf)
		}
		ok, err := p.header(buf, lim)
		if err != nil || !ok {
			return 0, err
		}
	}
	for len(p.spans) < p.want {
		ok, err := p.argument(buf, lim)
		if err != nil || !ok {
			return 0, err
		}
	}
	p.Args = p.Args[:0]
	for _, s := range p.spans {
		p.Args = append(p.Args, buf[s.from:s.to:s.to])
	}
	p.Inline = false
	n = p.pos
	p.reset()
	return n, nil
}

// Missing returns how many bytes at least are needed behind a buffer of length have to complete the present command.
func (p *Parser) Missing(have int) int {
	if p.pos == 0 || p.bulk < 0 {
		return 1
	}
	return max(1, p.pos+p.bulk+2-have)
}

// Begun describes an incomplete command whose present argument is known to be long: the arguments before it (views on buf),
// how many come after it, and how many bytes of it, with its line end, are missing behind buf. ok is false in any other
// state.
func (p *Parser) Begun(buf []byte) (args [][]byte, after, missing int, ok bool) {
	if p.pos == 0 || p.bulk < 0 || len(buf) >= p.pos+p.bulk+2 {
		return nil, 0, 0, false
	}
	for _, s := range p.spans {
		args = append(args, buf[s.from:s.to:s.to])
	}
	return args, p.want - len(p.spans) - 1, p.pos + p.bulk + 2 - len(buf), true
}

// Reset forgets an incomplete command: the next call of Next starts with the first byte of a command.
func (p *Parser) Reset() { p.reset() }

func (p *Parser) reset() {
	p.want, p.pos, p.bulk = 0, 0, -1
	if cap(p.spans) > spansKept {
		p.spans = nil
	}
	p.spans = p.spans[:0]
}

func (p *Parser) header(buf []byte, lim Limits) (ok bool, err error) {
	line, next, ok := crlf(buf, 1)
	if !ok || hasNUL(line) {
		if len(buf) > lineMax {
			return false, ErrCountTooBig
		}
		return false, nil
	}
	count, valid := integer(line)
	if !valid || count > multibulkArgCount {
		return false, ErrMultibulk
	}
	if lim.Unauth && count > unauthArgsMax {
		return false, ErrUnauthMulti
	}
	p.want, p.pos, p.bulk = int(max(count, 0)), next, -1
	return true, nil
}

func (p *Parser) argument(buf []byte, lim Limits) (ok bool, err error) {
	if p.bulk < 0 {
		if p.pos >= len(buf) {
			return false, nil
		}
		line, next, found := crlf(buf, p.pos)
		if !found || hasNUL(line) {
			if len(buf)-p.pos > lineMax {
				return false, ErrBulkTooBig
			}
			return false, nil
		}
		if buf[p.pos] != '$' {
			return false, ProtocolError("Protocol error: expected '$', got '" + string(buf[p.pos:p.pos+1]) + "'")
		}
		limit := lim.Bulk
		if limit == 0 {
			limit = defaultBulkMax
		}
		n, valid := integer(line[1:])
		if !valid || n < 0 || n > int64(limit) {
			return false, ErrBulk
		}
		if lim.Unauth && n > unauthBulkMax {
			return false, ErrUnauthBulk
		}
		p.pos, p.bulk = next, int(n)
	}
	if len(buf) < p.pos+p.bulk+2 {
		return false, nil
	}
	p.spans = append(p.spans, span{p.pos, p.pos + p.bulk})
	p.pos += p.bulk + 2
	p.bulk = -1
	return true, nil
}

// hasNUL reports whether the server, which looks for the end of a line with strchr, does not find it: it waits for more.
func hasNUL(line []byte) bool { return bytes.IndexByte(line, 0) >= 0 }

// crlf returns the line that starts at from and where the next one starts.
func crlf(buf []byte, from int) (line []byte, next int, ok bool) {
	i := bytes.IndexByte(buf[from:], '\r')
	if i < 0 || from+i+1 >= len(buf) {
		return nil, 0, false
	}
	return buf[from : from+i], from + i + 2, true // like the server, the byte behind \r is not looked at
}

// integer is string2ll: decimal, no plus, no spaces, no leading zeros.
func integer(b []byte) (v int64, ok bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	neg := b[0] == '-'
	if neg {
		b = b[1:]
	}
	if len(b) == 0 || b[0] == '0' && (len(b) > 1 || neg) {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' || v > (math.MaxInt64-int64(c-'0'))/10 {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	if neg {
		v = -v
	}
	return v, true
}

func (p *Parser) inline(buf []byte) (n int, err error) {
	end := bytes.IndexByte(buf, '\n')
	if end < 0 || hasNUL(buf[:end]) {
		if len(buf) > lineMax {
			return 0, ErrInlineTooBig
		}
		return 0, nil
	}
	line := buf[:end]
	if end > 0 && line[end-1] == '\r' {
		line = line[:end-1]
	}
	p.Args, p.Inline = p.Args[:0], true
	if cap(p.quoted) > quotedKept {
		p.quoted = nil
	}
	p.quoted = p.quoted[:0]
	if !p.split(line) {
		return 0, ErrQuotes
	}
	p.reset()
	return end + 1, nil
}

// split is sdssplitargs: words, 'single' and "double" quotes with \n \r \t \b \a \xhh. It reports false on unbalanced
// quotes and on a closing quote that is not followed by a space.
func (p *Parser) split(line []byte) bool {
	if need := len(line); cap(p.quoted) < need {
		p.quoted = make([]byte, 0, need) // never grown below, so that earlier arguments stay valid
	}
	for i := 0; ; {
		for i < len(line) && isSpace(line[i]) {
			i++
		}
		if i == len(line) {
			return true
		}
		start := len(p.quoted)
		var ok bool
		if i, ok = p.word(line, i); !ok {
			return false
		}
		p.Args = append(p.Args, p.quoted[start:len(p.quoted):len(p.quoted)])
	}
}

// word appends one word that starts at i to p.quoted and returns where it ends.
func (p *Parser) word(line []byte, i int) (end int, ok bool) {
	var quote byte
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case quote == '"' && c == '\\' && i+3 < len(line) && line[i+1] == 'x' && hex(line[i+2]) >= 0 && hex(line[i+3]) >= 0:
			p.quoted = append(p.quoted, byte(hex(line[i+2])<<4|hex(line[i+3])))
			i += 3
		case quote == '"' && c == '\\' && i+1 < len(line):
			i++
			p.quoted = append(p.quoted, unescape(line[i]))
		case quote == '\'' && c == '\\' && i+1 < len(line) && line[i+1] == '\'':
			i++
			p.quoted = append(p.quoted, '\'')
		case quote != 0 && c == quote:
			if i+1 < len(line) && !isSpace(line[i+1]) {
				return 0, false
			}
			return i + 1, true
		case quote != 0:
			p.quoted = append(p.quoted, c)
		case c == ' ' || c == '\t' || c == '\r' || c == 0: // \v and \f are spaces only in front of a word
			return i + 1, true
		case c == '"' || c == '\'':
			quote = c
		default:
			p.quoted = append(p.quoted, c)
		}
	}
	return i, quote == 0
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

func hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return c
}
