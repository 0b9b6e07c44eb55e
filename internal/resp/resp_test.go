// SPDX-License-Identifier: Apache-2.0

package resp

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func words(args [][]byte) string { return string(bytes.Join(args, []byte("|"))) }

func TestCommandsAreParsedAsTheServerDoes(t *testing.T) {
	for in, want := range map[string]string{
		"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n":         "GET|k",
		"*1\r\n$0\r\n\r\n":                       "",
		"GET k\r\n":                              "GET|k",
		"  get   'a b'  \"c\\x41\\n\"\n":         "get|a b|cA\n",
		"set k 'it\\'s'\r\n":                     "set|k|it's",
		"\r\n":                                   "",
		"*0\r\n":                                 "",
		"*-1\r\n":                                "",
		"*1\r\n$4\r\nPI\r\n\r\n":                 "PI\r\n",
		"set \"\" x\r\n":                         "set||x",
		"*3\r\n$1\r\na\r\n$1\r\nb\r\n$0\r\n\r\n": "a|b|",
	} {
		var p Parser
		n, err := p.Next([]byte(in+"tail"), Limits{})
		if err != nil || n != len(in) || words(p.Args) != want {
			t.Errorf("%q: %d bytes, %q, %v; want %d bytes, %q", in, n, words(p.Args), err, len(in), want)
		}
	}
}

func TestProtocolErrorsAreTheServers(t *testing.T) {
	for in, want := range map[string]ProtocolError{
		"*x\r\n":                              ErrMultibulk,
		"*2147483648\r\n":                     ErrMultibulk,
		"*01\r\n":                             ErrMultibulk,
		"*1\r\n$-1\r\n":                       ErrBulk,
		"*1\r\n$536870913\r\n":                ErrBulk,
		"*1\r\n:3\r\n":                        "Protocol error: expected '$', got ':'",
		"get 'a\r\n":                          ErrQuotes,
		"get 'a'b\r\n":                        ErrQuotes,
		strings.Repeat("a", 70_000):           ErrInlineTooBig,
		"*" + strings.Repeat("1", 70e3):       ErrCountTooBig,
		"*1\r\n$" + strings.Repeat("1", 70e3): ErrBulkTooBig,
	} {
		var p Parser
		if _, err := p.Next([]byte(in), Limits{}); !errors.Is(err, want) {
			t.Errorf("%.20q: %v, want %v", in, err, want)
		}
	}
	var p Parser
	if _, err := p.Next([]byte("*11\r\n"), Limits{Unauth: true}); !errors.Is(err, ErrUnauthMulti) {
		t.Error(err)
	}
	p = Parser{}
	if _, err := p.Next([]byte("*1\r\n$16385\r\n"), Limits{Unauth: true}); !errors.Is(err, ErrUnauthBulk) {
		t.Error(err)
	}
}

var replies = []string{
	"+OK\r\n", "-ERR x\r\n", ":-12\r\n", "$-1\r\n", "$0\r\n\r\n", "$3\r\na\nb\r\n", "*-1\r\n", "*0\r\n", "*2\r\n:1\r\n*1\r\n$1\r\nx\r\n", "_\r\n", "#t\r\n", ",1.5\r\n",
	"(123456789012345678901234567890\r\n", "!5\r\nERR x\r\n", "=5\r\ntxt:a\r\n", "%1\r\n+a\r\n%1\r\n+b\r\n:1\r\n", "~2\r\n:1\r\n:2\r\n",
	">2\r\n$3\r\nfoo\r\n:1\r\n", "*1\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n:1\r\n", "|1\r\n+ttl\r\n:1\r\n*2\r\n:1\r\n|1\r\n+x\r\n:2\r\n:3\r\n", "$?\r\n;2\r\nab\r\n;1\r\nc\r\n;0\r\n", "*?\r\n:1\r\n*?\r\n.\r\n$?\r\n;0\r\n.\r\n", "%?\r\n+a\r\n:1\r\n.\r\n",
}

func TestRepliesOfEveryTypeAreMeasuredWhereverTheyAreSplit(t *testing.T) {
	for _, f := range replies {
		for cut := range len(f) {
			var s Scanner
			if n, err := s.Next([]byte(f[:cut])); n != 0 || err != nil {
				t.Fatalf("%q cut at %d: %d %v", f, cut, n, err)
			}
			if n, err := s.Next([]byte(f + "+next\r\n")); n != len(f) || err != nil {
				t.Fatalf("%q continued at %d: %d %v", f, cut, n, err)
			}
		}
	}
	for _, bad := range []string{"x\r\n", "+a\n", "*x\r\n", "$-2\r\n", ".\r\n", ";1\r\n", "\n", strings.Repeat("*1\r\n", DepthMax+2)} {
		var s Scanner
		if _, err := s.Next([]byte(bad)); !errors.Is(err, ErrReply) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func TestAReplyMayBeHandedOnWhileItArrives(t *testing.T) {
	for _, f := range append(replies, "*3\r\n$10\r\n0123456789\r\n%1\r\n+a\r\n$4\r\nabcd\r\n:1\r\n") {
		for step := 1; step <= len(f); step++ {
			var s Scanner
			var held, passed []byte
			for rest := []byte(f + "+next\r\n"); ; {
				n, err := s.Next(held)
				if err != nil {
					t.Fatalf("%q in steps of %d: %v", f, step, err)
				}
				if n > 0 {
					passed = append(passed, held[:n]...)
					break
				}
				n = s.Drop(held)
				passed, held = append(passed, held[:n]...), held[n:]
				more := min(step, len(rest))
				if more == 0 {
					t.Fatalf("%q in steps of %d: its end was not found", f, step)
				}
				held, rest = append(bytes.Clone(held), rest[:more]...), rest[more:]
			}
			if string(passed) != f {
				t.Fatalf("%q in steps of %d: passed %q", f, step, passed)
			}
		}
	}
}

func TestElementsAndTextTakeRepliesApart(t *testing.T) {
	e := Elements([]byte("*3\r\n$1\r\na\r\n*1\r\n:2\r\n=5\r\ntxt:b\r\n"), nil)
	if len(e) != 3 || string(Text(e[0])) != "a" || string(e[1]) != "*1\r\n:2\r\n" || string(Text(e[2])) != "b" {
		t.Fatalf("%q", e)
	}
	if v, ok := Int([]byte(":42\r\n")); !ok || v != 42 {
		t.Fatal(v, ok)
	}
	if Text([]byte("$-1\r\n")) != nil || len(Elements([]byte("+OK\r\n"), nil)) != 0 {
		t.Fatal("null and simple strings have no parts")
	}
}

func TestAppendedFramesAreReadBack(t *testing.T) {
	b := AppendCommand(nil, "SET", "k", "")
	var p Parser
	if n, err := p.Next(b, Limits{}); n != len(b) || err != nil || words(p.Args) != "SET|k|" {
		t.Fatal(n, err, p.Args)
	}
	for _, f := range [][]byte{AppendSimple(nil, "OK"), AppendError(nil, "ERR a\r\nb"), AppendInt(nil, -5), AppendNull(nil, 2), AppendNull(nil, 3),
		AppendNullArray(nil, 2), AppendNullArray(nil, 3), AppendBulk(AppendMap(nil, 3, 0), "")[:4], AppendInt(AppendPush(nil, 1), 1), AppendBulk(nil, "x")} {
		var s Scanner
		if n, err := s.Next(f); n != len(f) || err != nil {
			t.Errorf("%q: %d %v", f, n, err)
		}
	}
}

func TestNothingIsAllocatedPerFrame(t *testing.T) {
	cmd := AppendCommand(nil, "SET", "key", "value")
	reply := []byte("*2\r\n$3\r\nfoo\r\n:1\r\n")
	inline := []byte("GET 'k'\r\n")
	var p Parser
	var s Scanner
	if n := testing.AllocsPerRun(1000, func() {
		_, _ = p.Next(cmd, Limits{})
		_, _ = p.Next(inline, Limits{})
		_, _ = s.Next(reply)
	}); n != 0 {
		t.Fatalf("%v allocations per command", n)
	}
}

func FuzzCommandsAreTheSameWhereverTheInputIsSplit(f *testing.F) {
	for _, in := range []string{"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", "GET 'a b'\r\n*1\r\n$4\r\nPING\r\n", "*1\r\n$x\r\n", "\r\n", "*0\r\n"} {
		f.Add([]byte(in), uint16(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, at uint16) {
		cut := int(at) % (len(in) + 1)
		var whole, split Parser
		n, err := whole.Next(in, Limits{Bulk: 1 << 16})
		m, err2 := split.Next(in[:cut:cut], Limits{Bulk: 1 << 16})
		if m == 0 && err2 == nil {
			m, err2 = split.Next(bytes.Clone(in), Limits{Bulk: 1 << 16})
		} else if err2 != nil && err == nil && n > 0 {
			t.Fatalf("refused when cut at %d: %v", cut, err2)
		}
		if n > len(in) || n != m || (err == nil) != (err2 == nil) {
			t.Fatalf("whole: %d %v; cut at %d: %d %v", n, err, cut, m, err2)
		}
		if n > 0 && words(whole.Args) != words(split.Args) {
			t.Fatalf("%q, %q", whole.Args, split.Args)
		}
	})
}

func FuzzRepliesAreTheSameWhereverTheInputIsSplit(f *testing.F) {
	for _, in := range replies {
		f.Add([]byte(in), uint16(2))
	}
	f.Fuzz(func(t *testing.T, in []byte, at uint16) {
		cut := int(at) % (len(in) + 1)
		var whole, split Scanner
		n, err := whole.Next(in)
		m, err2 := split.Next(in[:cut:cut])
		if m == 0 && err2 == nil {
			m, err2 = split.Next(bytes.Clone(in))
		}
		if n > len(in) || n != m || (err == nil) != (err2 == nil) {
			t.Fatalf("whole: %d %v; cut at %d: %d %v", n, err, cut, m, err2)
		}
		if n > 0 {
			Elements(in[:n], nil)
			Text(in[:n])
		}
	})
}
