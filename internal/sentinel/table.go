// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"fmt"
	"strings"

	"redoubt/internal/resp"
)

// tableRow is what COMMAND says of one command: none has keys, which is what clients look for.
type tableRow struct {
	name       string
	arity      int64
	flags      string
	categories string
}

// table is that of a Sentinel (Redis 7.0.15).
func table() []tableRow {
	const always = "noscript loading stale"
	return []tableRow{
		{"auth", -2, always + " fast no_auth allow_busy", "@fast @connection"},
		{"shutdown", -1, "admin " + always + " no_multi allow_busy", "@admin @slow @dangerous"},
		{"unsubscribe", -1, "pubsub " + always, "@pubsub @slow"},
		{"role", 1, always + " fast", "@admin @fast @dangerous"},
		{"ping", -1, "fast", "@fast @connection"},
		{"info", -1, "loading stale", "@slow @dangerous"},
		{"acl", -2, "", "@slow"},
		{"hello", -1, always + " fast no_auth allow_busy", "@fast @connection"},
		{"subscribe", -2, "pubsub " + always, "@pubsub @slow"},
		{"psubscribe", -2, "pubsub " + always, "@pubsub @slow"},
		{"punsubscribe", -1, "pubsub " + always, "@pubsub @slow"},
		{"publish", 3, "pubsub loading stale fast", "@pubsub @fast"},
		{"client", -2, "", "@slow"},
		{"sentinel", -2, "admin", "@admin @slow @dangerous"},
		{"command", -1, "loading stale", "@slow @connection"},
	}
}

func (se *session) commandTable(_ context.Context, args []string) {
	all := table()
	switch sub := upper(args, 1); sub {
	case "":
		se.array(len(all))
		for _, r := range all {
			se.row(r)
		}
	case "COUNT":
		se.number(int64(len(all)))
	case "LIST":
		se.array(len(all))
		for _, r := range all {
			se.bulk(r.name)
		}
	case "INFO":
		se.commandInfo(all, args[2:])
	case "DOCS":
		se.mapOf(0)
	case "GETKEYS", "GETKEYSANDFLAGS":
		se.fail("ERR The command has no key arguments")
	default:
		se.fail(fmt.Sprintf("ERR unknown subcommand '%.128s'. Try COMMAND HELP.", args[1]))
	}
}

func (se *session) commandInfo(all []tableRow, names []string) {
	if len(names) == 0 {
		for _, r := range all {
			names = append(names, r.name)
		}
	}
	se.array(len(names))
	for _, n := range names {
		found := false
		for _, r := range all {
			if strings.EqualFold(r.name, n) {
				se.row(r)
				found = true
			}
		}
		if !found {
			se.null()
		}
	}
}

func (se *session) row(r tableRow) {
	se.array(10)
	se.bulk(r.name)
	se.number(r.arity)
	se.words(r.flags)
	se.number(0)
	se.number(0)
	se.number(0)
	se.words(r.categories)
	if r.name == "ping" { // the only one with tips
		se.setOf(2)
		se.bulk("request_policy:all_shards")
		se.bulk("response_policy:all_succeeded")
	} else {
		se.setOf(0)
	}
	se.setOf(0) // keys
	se.setOf(0) // subcommands, which are left out
}

// words is a set of simple strings.
func (se *session) words(text string) {
	all := strings.Fields(text)
	se.setOf(len(all))
	for _, w := range all {
		se.simple(w)
	}
}

func (se *session) mapOf(n int) { se.buf = resp.AppendMap(se.buf, se.proto, n) }

// verbatim is the text type of RESP3, a bulk before.
func (se *session) verbatim(text string) {
	if se.proto < 3 {
		se.bulk(text)
		return
	}
	se.buf = fmt.Appendf(se.buf, "=%d\r\ntxt:%s\r\n", len(text)+4, text)
}

// setOf is the set of RESP3, an array before.
func (se *session) setOf(n int) {
	if se.proto < 3 {
		se.array(n)
		return
	}
	se.buf = fmt.Appendf(se.buf, "~%d\r\n", n)
}

func (se *session) acl(_ context.Context, args []string) {
	users := []string{"default"}
	if u := se.s.o.Username; u != "" {
		users = append(users, u)
	}
	switch upper(args, 1) {
	case "WHOAMI":
		se.bulk(se.user)
	case "USERS":
		se.array(len(users))
		for _, u := range users {
			se.bulk(u)
		}
	case "LIST":
		secret := "nopass"
		if se.s.o.Password != "" {
			secret = "#hidden"
		}
		se.array(len(users))
		for _, u := range users {
			se.bulk("user " + u + " on " + secret + " ~* &* +@all")
		}
	case "LOG":
		se.array(0)
	case "CAT":
		se.array(0)
	default:
		se.fail("ERR users are not changed here: sentinel.username and sentinel.password are in the members' files")
	}
}
