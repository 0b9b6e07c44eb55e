// SPDX-License-Identifier: Apache-2.0

// Package route decides where a client's command goes and what a backend's reply means. It is not for sockets or
// queues: plain values in, plain values out. Its invariant: a command that is not known to be read-only is treated as a
// write, so that nothing is ever sent twice which may change data. It has no goroutines, and lookups allocate nothing.
package route

import (
	"strings"

	"redoubt/internal/resp"
)

// Flags are the properties of a command that matter on the way.
type Flags uint8

// The properties.
const (
	Readonly Flags = 1 << iota // never changes the data set: may be sent again, may go to a replica
	Harmless                   // changes nothing that matters: may be sent again, but is not for replicas
	Blocking                   // may block its connection
	NoMulti                    // refused inside MULTI by the proxy
)

// Care is what a proxy has to mind about a command besides its class.
type Care uint8

// The cares.
const (
	NoCare     Care = iota
	Cursor          // its cursor means something on one server process only: argument 1 of SCAN, 2 of HSCAN, SSCAN and ZSCAN
	Eval            // carries a script that a later EVALSHA may name
	EvalSHA         // names a script that the server may not know
	Everywhere      // changes something that servers do not replicate: CONFIG SET, ACL SETUSER and DELUSER, SCRIPT LOAD and FLUSH
)

// Row is what is known of one command.
type Row struct {
	Name  string // upper case
	Flags Flags
	Class Class
	Care  Care // of the command as a whole; for Everywhere, the subcommand decides
	verb  verb
	words int8 // see Plain; 0: not plain
	odd   bool // its flags keep it from being plain

	places []place // of its keys
}

// Resendable reports whether the command may be sent again when its reply was lost.
func (r *Row) Resendable() bool { return r.Flags&(Readonly|Harmless) != 0 }

// Table maps names to rows. It is immutable.
type Table struct {
	rows    map[string]*Row
	unknown *Row
}

// nameMax bounds a command's name; longer names are unknown to every server.
const nameMax = 64

// Lookup returns the row of a command, in any mixture of cases; a row named "" (a write) for one that is not known,
// whose refusal is left to the backend.
func (t *Table) Lookup(name []byte) *Row {
	var up [nameMax]byte
	if len(name) > nameMax {
		return t.unknown
	}
	for i, c := range name {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		up[i] = c
	}
	if r, ok := t.rows[string(up[:len(name)])]; ok {
		return r
	}
	return t.unknown
}

// Len returns how many commands are known.
func (t *Table) Len() int { return len(t.rows) }

// Builtin returns the table of Redis 7.0–8 and Valkey 7.2–8, for as long as no backend was asked.
func Builtin() *Table {
	t := &Table{rows: make(map[string]*Row, 512), unknown: &Row{Class: Write}}
	t.add(builtinReads, Readonly, Read)
	t.add(builtinHarmless, Harmless, Read)
	t.add(builtinWrites, 0, Write)
	t.special()
	t.markPlain()
	t.markKeys()
	return t
}

func (t *Table) add(names string, f Flags, c Class) {
	for name := range strings.FieldsSeq(names) {
		name = strings.ToUpper(name)
		t.rows[name] = &Row{Name: name, Flags: f, Class: c}
	}
}

// special puts the rows in place whose treatment does not follow from a server's flags.
func (t *Table) special() {
	for _, s := range specials() {
		for name := range strings.FieldsSeq(s.names) {
			name = strings.ToUpper(name)
			row := &Row{Name: name, Flags: s.flags, Class: s.class, verb: s.verb}
			t.rows[name] = row
		}
	}
	for care, names := range map[Care]string{Cursor: "SCAN HSCAN SSCAN ZSCAN", Eval: "EVAL EVAL_RO", EvalSHA: "EVALSHA EVALSHA_RO", Everywhere: "CONFIG ACL SCRIPT"} {
		for name := range strings.FieldsSeq(names) {
			if row := t.rows[name]; row != nil {
				row.Care = care
			}
		}
	}
}

// CursorIndex returns the index of the argument that holds the cursor of a command with care Cursor.
func CursorIndex(name string) int {
	if name == "SCAN" {
		return 1
	}
	return 2
}

// FromCommand builds a table from a backend's reply to COMMAND (RESP2 or RESP3, every version), so that new commands
// and modules work untouched. ok is false when the reply is not what COMMAND answers.
func FromCommand(reply []byte) (t *Table, ok bool) {
	t = Builtin()
	for _, c := range resp.Elements(reply, nil) {
		fields := resp.Elements(c, nil)
		if len(fields) < 3 {
			continue
		}
		name := strings.ToUpper(string(resp.Text(fields[0])))
		if name == "" {
			continue
		}
		ok = true
		row := &Row{Name: name, Class: Write, places: placesOf(fields)}
		for _, f := range resp.Elements(fields[2], nil) {
			flag := string(resp.Text(f))
			row.odd = row.odd || strings.Contains(notPlain, " "+flag+" ")
			switch flag {
			case "readonly":
				row.Flags |= Readonly
				row.Class = Read
			case "blocking":
				row.Flags |= Blocking
			}
		}
		if row.Flags&Blocking != 0 {
			row.Class = Block
		}
		if old := t.rows[name]; old != nil && old.Flags&Harmless != 0 && row.Flags&Readonly == 0 {
			continue // servers have no flag for "changes nothing that matters"
		}
		t.rows[name] = row
	}
	t.special()
	t.markPlain()
	t.markKeys()
	return t, ok
}
