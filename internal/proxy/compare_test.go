// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"

	"redoubt/internal/resp"
)

var (
	infoText = regexp.MustCompile(`^[$=]\d+\r\n(txt:)?# [A-Z]`) // damaged input finds INFO, which is each server's own
	waits    = regexp.MustCompile(`(?i)WAIT`)
	helloID  = regexp.MustCompile(`(\$2\r\nid\r\n):\d+`)
	// What docs/guide/clients.md says that the proxy refuses; what comes behind it may differ too.
	refusedByDesign = regexp.MustCompile(`is not allowed inside a transaction through the proxy|^-ERR .* is refused: |^-ERR SCRIPT DEBUG needs|^-ERR this DEBUG subcommand`)
)

// compare returns what differs; empty: nothing. prefix: got may end early.
func compare(want, got [][]byte, prefix bool) string {
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			if prefix {
				return ""
			}
			return "reply " + strconv.Itoa(i) + " is missing: " + strconv.Quote(string(want[i]))
		case refusedByDesign.Match(got[i]), i < len(want) && forgotten(want[i]) && !forgotten(got[i]):
			return "" // the proxy keeps the text of an EVAL also when the server refused it
		case i < len(want) && infoText.Match(want[i]) && infoText.Match(got[i]):
			continue
		case i >= len(want):
			return "a reply too much: " + strconv.Quote(string(got[i]))
		}
		a, b := helloID.ReplaceAll(messagesSorted(want[i]), []byte("$1:1")), helloID.ReplaceAll(messagesSorted(got[i]), []byte("$1:1"))
		if !bytes.Equal(a, b) && !bytes.Equal(canonical(a), canonical(b)) {
			return "reply " + strconv.Itoa(i) + ": server " + strconv.Quote(string(a)) + ", proxy " + strconv.Quote(string(b))
		}
	}
	return ""
}

func forgotten(f []byte) bool { return bytes.HasPrefix(f, []byte("-NOSCRIPT ")) }

// settled gives what comes in the order of a hash table (the patterns that match, what an UNSUBSCRIBE from all ends) an
// order of its own. last: messages go behind the replies. Known difference: in quorum mode messages are not withheld, so
// that they may be ahead of replies that are.
func settled(frames [][]byte, last bool) [][]byte {
	var all, loose [][]byte
	flush := func() {
		slices.SortFunc(loose, bytes.Compare)
		all, loose = append(all, loose...), nil
	}
	for _, f := range frames {
		e := resp.Elements(f, nil)
		switch {
		case isMessage(f):
			loose = append(loose, f)
			continue
		case len(e) == 3 && bytes.HasSuffix(resp.Text(e[0]), []byte("unsubscribe")):
			all, loose = append(all, slices.Concat(e[0], e[2])), append(loose, e[1])
			continue
		case !last:
			flush()
		}
		all = append(all, f)
	}
	flush()
	return all
}

func isMessage(f []byte) bool {
	e := resp.Elements(f, nil)
	return f[0] == '>' && len(e) > 0 && bytes.HasSuffix(resp.Text(e[0]), []byte("message"))
}

// messagesSorted gives the messages inside of an EXEC's reply, where Redis 7.0 puts those that a PUBLISH in it causes, an order of their
// own: that of the patterns which match is a hash table's, and each server's own.
func messagesSorted(f []byte) []byte {
	if f[0] != '*' || !bytes.Contains(f, []byte("\n>")) {
		return f
	}
	head := bytes.IndexByte(f, '\n') + 1
	all, rest := slices.Clone(f[:head]), f[head:]
	var loose [][]byte
	for len(rest) > 0 {
		var sc resp.Scanner
		size, bad := sc.Next(rest)
		if bad != nil || size == 0 {
			return f
		}
		if isMessage(rest[:size]) {
			loose = append(loose, rest[:size])
		} else {
			slices.SortFunc(loose, bytes.Compare)
			all, loose = append(append(all, bytes.Join(loose, nil)...), rest[:size]...), nil
		}
		rest = rest[size:]
	}
	slices.SortFunc(loose, bytes.Compare)
	return append(all, bytes.Join(loose, nil)...)
}

// pushed reports whether CLIENT REPLY OFF lets f through.
func pushed(f []byte) bool {
	e := resp.Elements(f, nil)
	return isMessage(f) || len(e) == 3 && bytes.HasSuffix(resp.Text(e[0]), []byte("subscribe"))
}

// canonical sorts the elements of aggregates: hash tables have an order of their own in each server process.
func canonical(f []byte) []byte {
	parts := resp.Elements(f, nil)
	if len(parts) == 0 {
		return f
	}
	for i := range parts {
		parts[i] = canonical(parts[i])
	}
	slices.SortFunc(parts, bytes.Compare)
	head := bytes.IndexByte(f, '\n') + 1
	return append(slices.Clone(f[:head]), bytes.Join(parts, nil)...)
}
