// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/resp"
)

// dice turns bytes into choices; when they are used up, every choice is the first one.
type dice struct{ b []byte }

func (d *dice) upTo(n int) int {
	v := 0
	for span := 1; span < n; span <<= 8 {
		if len(d.b) == 0 {
			return 0
		}
		v = v<<8 | int(d.b[0])
		d.b = d.b[1:]
	}
	return v % n
}

func (d *dice) pick(of ...string) string { return of[d.upTo(len(of))] }

// How an input ends.
const (
	endQuietly  = iota // the client ends its side when it has every reply
	endWithQuit        //
	endAtOnce          // the client ends its side at once
	endBroken          // the client resets the connection at once
	endings
)

// script is the whole input of one client.
type script struct {
	parts [][]byte // commands; lines, if the stream was damaged
	cuts  []int    // where it is cut in pieces that are sent one by one
	end   int
	nonce string // makes Lua scripts different from those of every other input
	lines []string
	multi bool
}

const commandsMax = 40

// decode makes an input of any bytes.
func decode(data []byte, nonce int) *script {
	d := &dice{data}
	sc := &script{end: max(d.upTo(8)-(8-endings), 0), nonce: fmt.Sprintf("--%08d", nonce), lines: strings.Split(strings.TrimSpace(grammar), "\n")}
	style, damage := d.upTo(4), max(d.upTo(16)-12, 0)
	for n := 0; n < commandsMax && len(d.b) > 0; n++ {
		for c := range strings.SplitSeq(sc.line(d), "|") {
			sc.command(d, c)
		}
	}
	if sc.end == endWithQuit {
		sc.parts = append(sc.parts, resp.AppendCommand(nil, "QUIT"))
	}
	stream := bytes.Join(sc.parts, nil)
	if damage > 0 {
		for range damage {
			stream = damaged(stream, d)
		}
		sc.parts = bytes.SplitAfter(stream, []byte("\n"))
	}
	sc.cut(d, len(stream), style)
	return sc
}

func (sc *script) line(d *dice) string {
	for range 8 {
		line := sc.lines[d.upTo(len(sc.lines))]
		verb, _, _ := strings.Cut(line, " ")
		switch verb { // documented: refused inside MULTI
		case "HELLO", "AUTH", "CLIENT", "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE":
			if sc.multi {
				continue
			}
		}
		return line
	}
	return "EXEC"
}

// command appends one command, now and then with a twist.
func (sc *script) command(d *dice, line string) {
	var words []string
	for w := range strings.FieldsSeq(line) {
		words = append(words, sc.word(d, w))
	}
	switch words[0] {
	case "MULTI":
		sc.multi = true
	case "EXEC", "DISCARD", "RESET":
		sc.multi = false
	}
	switch d.upTo(48) {
	case 1:
		words = words[:len(words)-1]
	case 2:
		words = append(words, words[len(words)-1])
	case 3:
		words[0] = strings.ToLower(words[0])
	case 4:
		words[0] = words[0][:len(words[0])/2] + strings.ToLower(words[0][len(words[0])/2:])
	case 5, 6, 7:
		sc.parts = append(sc.parts, []byte(inline(d, words)))
		return
	case 8:
		sc.parts = append(sc.parts, []byte(d.pick("\r\n", "*0\r\n", "\n", "*-1\r\n", " \r\n", "*1\r\n$0\r\n\r\n")))
	}
	sc.parts = append(sc.parts, resp.AppendCommand(nil, words...))
}

var luaScripts = []string{
	"return 1", "return redis.call('GET',KEYS[1])", "return redis.call('SET',KEYS[1],ARGV[1])", "return {1,2,{3,'x'}}", "return redis.error_reply('MY err')", "return {ok='fine'}",
	"return redis.call('nosuch')", "return redis.pcall('LPUSH',KEYS[1],ARGV[1])", "redis.setresp(3); return {double=3.5}", "return nope", "return (", "redis.call('SELECT',3); return redis.call('DBSIZE')",
	"return redis.call('PUBLISH','c0','lua')", "return false", "redis.setresp(3); return {map={a=1}}", "return {'message','c0','x'}",
}

func (sc *script) word(d *dice, w string) string {
	at := strings.IndexByte(w, '@')
	if at < 0 || at+1 == len(w) {
		return w
	}
	lua := func() string { return luaScripts[d.upTo(len(luaScripts))] + sc.nonce }
	switch kind := w[at+1]; kind {
	case 's', 'l', 'h', 't', 'z', 'x', 'b', 'p', 'g':
		if d.upTo(16) == 15 {
			return sc.word(d, "@k")
		}
		return string(kind) + strconv.Itoa(d.upTo(2))
	case 'k':
		return d.pick("s", "l", "h", "t", "z", "x", "b", "p", "g") + strconv.Itoa(d.upTo(2))
	case 'v':
		return d.pick("a", "b", "", "7", "hello world", "-1", "x\r\ny", "\x00\xff", "message", `q"u'o\te`, "3.25", strings.Repeat("v", 200), strings.Repeat("w", 5000),
			strings.Repeat("*1\r\n$4\r\nPING\r\n", 3), "+OK\r\n", strings.Repeat("long", 6000))
	case 'i':
		return d.pick("0", "1", "-1", "3", "-2", "100", "x", "9223372036854775807", "")
	case 'n':
		return w[:at] + strconv.Itoa(d.upTo(8))
	case 'f':
		return d.pick("1", "2.5", "-3", "1e3", "inf", "nan", "x", "0.1")
	case 'd':
		return d.pick("0", "1", "3", "15", "16", "-1", "x", "99999999999", "01", "")
	case 'c':
		return "c" + strconv.Itoa(d.upTo(3))
	case 'w':
		return d.pick("foo", "on", "two words", "", "new\nline", "RESET", "é", "YES")
	case 'L':
		return lua()
	case 'H':
		sum := sha1.Sum([]byte(lua()))
		return hex.EncodeToString(sum[:])
	}
	return w
}

// inline says a command the way a person does in telnet.
func inline(d *dice, words []string) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteString(d.pick(" ", "  ", "\t"))
		}
		plain := w != "" && strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-+$#*[(") == ""
		switch style := d.upTo(3); {
		case plain && style == 0 && !strings.HasPrefix(w, "*"):
			b.WriteString(w)
		case style == 1 && !strings.ContainsAny(w, "\x00\n'\\"):
			b.WriteString("'" + w + "'")
		default:
			b.WriteByte('"')
			for _, c := range []byte(w) {
				if c < ' ' || c > '~' || c == '"' || c == '\\' {
					fmt.Fprintf(&b, `\x%02x`, c)
				} else {
					b.WriteByte(c)
				}
			}
			b.WriteByte('"')
		}
	}
	return b.String() + d.pick("\r\n", "\n", " \r\n", `"`+"\r\n")
}

var garbage = []string{"\r", "\n", "*", "$", "*3\r\n", "$-1\r\n", "$5\r\n", "\"", "'", "*1\r\n:3\r\n", "*99999999999\r\n", "*2\r\n$3\r\nGET\r\n", "-", "\xff\xfe", "*1\r\n$4\r\nQUIT\r\n",
	"GET 'a\r\n", "PING \"x\\x41\\n\"\r\n", "*1\r\n\xe9\r\n", "*1\r\n$536870913\r\n", "\x00", "*-9\r\n", "*01\r\n", "*1\r\n$+4\r\nPING\r\n"}

// damaged alters a stream as no client does on purpose.
func damaged(stream []byte, d *dice) []byte {
	at := d.upTo(len(stream) + 1)
	head, tail := stream[:at:at], stream[at:]
	switch d.upTo(5) {
	case 0:
		return append(append(head, garbage[d.upTo(len(garbage))]...), tail...)
	case 1:
		return append(head, tail[min(len(tail), 1+d.upTo(16)):]...)
	case 2:
		return append(append(head, byte(d.upTo(256))), tail[min(1, len(tail)):]...)
	case 3:
		n := 1 + d.upTo(32)
		return append(append(head, d.b[:min(len(d.b), n)]...), tail...)
	}
	return head
}

// cut chooses the pieces.
func (sc *script) cut(d *dice, size, style int) {
	first, step, most := 0, 0, 0
	switch style {
	case 0:
		return
	case 1:
		first, step, most = 9, 90, 8
	case 2:
		first, step, most = 1, 1, 40
	case 3:
		first, step, most = 1000, 3000, 16
	}
	for at := d.upTo(first) + 1; at < size && len(sc.cuts) < most; at += d.upTo(step) + 1 {
		sc.cuts = append(sc.cuts, at)
	}
}

// FuzzSession: any input is answered by the proxy as by the server.
func FuzzSession(f *testing.F) {
	r := newRivals(f, false)
	r.patience = 3 * time.Second // an input that takes 10 s counts as one that hangs, and nothing is said of it
	for _, data := range seedCorpus() {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 600 {
			return
		}
		r.nonce++
		r.duel(t, decode(data, r.nonce))
	})
}
