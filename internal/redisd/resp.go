// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	replyBytesMax = 64 << 20 // of one bulk string; CLIENT LIST of a full server is the largest that we ask for
	replyItemsMax = 1 << 20  // of one array
	replyDepthMax = 8
)

// reply is one RESP2 reply (protocol of Redis 2.0 and later; the admin connection never sends HELLO).
type reply struct {
	kind  byte // '+', '-', ':', '$', '*'
	text  string
	num   int64
	items []reply
	null  bool
}

// err returns the server's error, nil for any other reply.
func (r reply) err() error {
	if r.kind != '-' {
		return nil
	}
	return serverError(r.text)
}

// pairs reads an array of name, value, name, value (CONFIG GET).
func (r reply) pairs() map[string]string {
	m := make(map[string]string, len(r.items)/2)
	for i := 0; i+1 < len(r.items); i += 2 {
		m[r.items[i].text] = r.items[i+1].text
	}
	return m
}

// words reads an array of strings.
func (r reply) words() []string {
	out := make([]string, 0, len(r.items))
	for _, it := range r.items {
		out = append(out, it.text)
	}
	return out
}

// serverError is an error reply; its first word is the code ("BUSY", "LOADING", "NOAUTH", …).
type serverError string

func (e serverError) Error() string { return "the server answered: " + string(e) }

func (e serverError) code() string {
	word, _, _ := strings.Cut(string(e), " ")
	return word
}

// isCode tells whether err is an error reply with one of these codes.
func isCode(err error, codes ...string) bool {
	var se serverError
	if !errors.As(err, &se) {
		return false
	}
	for _, c := range codes {
		if se.code() == c {
			return true
		}
	}
	return false
}

// appendCommand appends one command as an array of bulk strings.
func appendCommand(b []byte, args []string) []byte {
	b = append(b, '*')
	b = strconv.AppendInt(b, int64(len(args)), 10)
	b = append(b, '\r', '\n')
	for _, a := range args {
		b = append(b, '$')
		b = strconv.AppendInt(b, int64(len(a)), 10)
		b = append(b, '\r', '\n')
		b = append(b, a...)
		b = append(b, '\r', '\n')
	}
	return b
}

// readReply reads one reply. Its errors mean that the stream is unusable from here on.
func readReply(r *bufio.Reader, depth int) (reply, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return reply{}, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' || depth > replyDepthMax {
		return reply{}, fmt.Errorf("not a RESP2 reply: %.40q", line)
	}
	rep := reply{kind: line[0], text: line[1 : len(line)-2]}
	switch rep.kind {
	case '+', '-':
		return rep, nil
	case ':', '$', '*':
	default:
		return reply{}, fmt.Errorf("not a RESP2 reply: %.40q", line)
	}
	if rep.num, err = strconv.ParseInt(rep.text, 10, 64); err != nil {
		return reply{}, fmt.Errorf("not a number in a RESP2 reply: %.40q", line)
	}
	switch {
	case rep.kind == ':':
		return rep, nil
	case rep.num == -1:
		rep.null, rep.text = true, ""
		return rep, nil
	case rep.kind == '$':
		return readBulk(r, rep)
	}
	return readArray(r, rep, depth)
}

func readBulk(r *bufio.Reader, rep reply) (reply, error) {
	if rep.num < 0 || rep.num > replyBytesMax {
		return reply{}, fmt.Errorf("a bulk string of %d bytes is beyond the limit of %d", rep.num, replyBytesMax)
	}
	b := make([]byte, rep.num+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return reply{}, err
	}
	rep.text = string(b[:rep.num])
	return rep, nil
}

func readArray(r *bufio.Reader, rep reply, depth int) (reply, error) {
	if rep.num < 0 || rep.num > replyItemsMax {
		return reply{}, fmt.Errorf("an array of %d items is beyond the limit of %d", rep.num, replyItemsMax)
	}
	rep.text = ""
	for range rep.num {
		item, err := readReply(r, depth+1)
		if err != nil {
			return reply{}, err
		}
		rep.items = append(rep.items, item)
	}
	return rep, nil
}
