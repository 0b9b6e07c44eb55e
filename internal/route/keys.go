// SPDX-License-Identifier: Apache-2.0

package route

import (
	"strconv"
	"strings"

	"redoubt/internal/resp"
)

// place says where some of a command's keys are.
type place struct {
	word  string // upper case: the search for it begins at from, and the keys behind it; empty: the keys begin at from
	from  int    // index of an argument; negative: counted from the end, and searched backwards
	last  int    // of a range: the last key, counted from the first one; negative: from the end
	step  int
	limit int  // of a range to the end: only that part of it (2: the half) are keys
	count bool // the number of keys is the argument at `at` (counted from the beginning), the first key at `first`
	at    int
	first int
}

// Names of commands by the places of their keys, in Redis 7.0–8 and Valkey 7.2–8. A name of the built-in table that is in none of
// these lists has one key: its first argument.
const (
	keysNone = `ping echo time command info lastsave pubsub role slowlog latency lolwut pfselftest flushall flushdb swapdb
script function publish spublish acl module bgrewriteaof bgsave save dbsize keys randomkey scan multi exec discard
unwatch wait waitaof subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe monitor hello auth quit reset
post host: select readonly readwrite asking proxy client config cluster replicaof slaveof shutdown failover psync sync
replconf sentinel`
	keysAll     = `del unlink exists touch mget watch sinter sunion sdiff sinterstore sunionstore sdiffstore pfcount pfmerge`
	keysButLast = `blpop brpop bzpopmin bzpopmax`
	keysPairs   = `mset msetnx`
	keysTwo     = `rename renamenx copy lcs smove lmove rpoplpush brpoplpush blmove geosearchstore zrangestore`
	keysSecond  = `object memory xinfo xgroup pfdebug debug`
	keysFrom2   = `bitop`
	keysCount1  = `sintercard lmpop zmpop zinter zunion zdiff zintercard`
	keysCount2  = `eval evalsha eval_ro evalsha_ro fcall fcall_ro blmpop bzmpop`
	keysStore   = `zinterstore zunionstore zdiffstore`
	keysStreams = `xread xreadgroup`
	keysRadius  = `georadius georadiusbymember`
)

// markKeys notes where the keys of the built-in table's commands are. Where a server's own table says something else about
// one of them, this one is right: servers leave out what depends on options.
func (t *Table) markKeys() {
	one := place{from: 1, step: 1}
	for name := range builtinNames() {
		if row := t.rows[name]; row != nil {
			row.places = []place{one}
		}
	}
	for _, l := range []struct {
		names  string
		places []place
	}{
		{keysNone, nil},
		{keysAll, []place{{from: 1, last: -1, step: 1}}},
		{keysButLast, []place{{from: 1, last: -2, step: 1}}},
		{keysPairs, []place{{from: 1, last: -1, step: 2}}},
		{keysTwo, []place{{from: 1, last: 1, step: 1}}},
		{keysSecond, []place{{from: 2, step: 1}}},
		{keysFrom2, []place{{from: 2, last: -1, step: 1}}},
		{keysCount1, []place{{count: true, at: 1, first: 2, step: 1}}},
		{keysCount2, []place{{count: true, at: 2, first: 3, step: 1}}},
		{"msetex", []place{{count: true, at: 1, first: 2, step: 2}}},
		{keysStore, []place{one, {count: true, at: 2, first: 3, step: 1}}},
		{keysStreams, []place{{word: "STREAMS", from: 1, last: -1, step: 1, limit: 2}}},
		{keysRadius, []place{one, {word: "STORE", from: 6, step: 1}, {word: "STOREDIST", from: 6, step: 1}}},
		{"sort", []place{one, {word: "STORE", from: -2, step: 1}}},
		{"migrate", []place{{from: 3, step: 1}, {word: "KEYS", from: -2, last: -1, step: 1}}},
	} {
		for name := range strings.FieldsSeq(l.names) {
			if row := t.rows[strings.ToUpper(name)]; row != nil {
				row.places = l.places
			}
		}
	}
}

func builtinNames() map[string]struct{} {
	names := map[string]struct{}{}
	lists := []string{builtinReads, builtinHarmless, builtinWrites}
	for _, s := range specials() {
		lists = append(lists, s.names)
	}
	for _, l := range lists {
		for name := range strings.FieldsSeq(l) {
			names[strings.ToUpper(name)] = struct{}{}
		}
	}
	return names
}

// placesOf reads a command's places from its entry in a server's reply to COMMAND: the key specifications of Redis 7.0 and
// later where there are some, else the first, last and step of every version.
func placesOf(fields [][]byte) []place {
	if len(fields) < 6 {
		return nil
	}
	if len(fields) > 8 {
		var places []place
		for _, spec := range resp.Elements(fields[8], nil) {
			p, ok := placeOf(spec)
			if !ok {
				places = nil
				break
			}
			places = append(places, p)
		}
		if places != nil {
			return places
		}
	}
	first, _ := resp.Int(fields[3])
	last, _ := resp.Int(fields[4])
	step, _ := resp.Int(fields[5])
	if first <= 0 || step <= 0 {
		return nil
	}
	if last > 0 {
		last -= first
	}
	return []place{{from: int(first), last: int(last), step: int(step)}}
}

// placeOf reads one key specification; ok is false for what says "unknown".
func placeOf(spec []byte) (p place, ok bool) {
	begin, find := field(spec, "begin_search"), field(spec, "find_keys")
	b, f := field(begin, "spec"), field(find, "spec")
	switch string(resp.Text(field(begin, "type"))) {
	case "index":
		p.from = number(b, "index")
	case "keyword":
		p.word, p.from = strings.ToUpper(string(resp.Text(field(b, "keyword")))), number(b, "startfrom")
	default:
		return p, false
	}
	switch string(resp.Text(field(find, "type"))) {
	case "range":
		p.last, p.step, p.limit = number(f, "lastkey"), number(f, "keystep"), number(f, "limit")
	case "keynum":
		p.count, p.step = true, number(f, "keystep")
		p.at, p.first = p.from+number(f, "keynumidx"), p.from+number(f, "firstkey")
	default:
		return p, false
	}
	return p, p.step > 0 && (p.word == "" || !p.count)
}

// field returns the value of a map's entry, also of one that is a flat array (RESP2).
func field(m []byte, name string) []byte {
	e := resp.Elements(m, nil)
	for i := 0; i+1 < len(e); i += 2 {
		if string(resp.Text(e[i])) == name {
			return e[i+1]
		}
	}
	return nil
}

func number(m []byte, name string) int {
	v, _ := resp.Int(field(m, name))
	return int(v)
}

// Keys appends the indexes of a command's keys to dst, in their order. It appends nothing for a command without keys, and for
// one whose arguments make no sense, whose refusal is left to a server.
func (r *Row) Keys(args [][]byte, dst []int) []int {
	if r.Name == "MEMORY" && (len(args) < 2 || !Is(args[1], "USAGE")) || r.Name == "DEBUG" && (len(args) < 2 || !debugsKey(args[1])) {
		return dst
	}
	places := r.places
	if r.Name == "MIGRATE" && len(args) > 3 && len(args[3]) == 0 {
		places = places[1:] // its keys follow the word KEYS
	}
	for i := range places {
		dst = places[i].keys(args, dst)
	}
	return dst
}

func debugsKey(sub []byte) bool {
	for _, s := range [...]string{"OBJECT", "SDSLEN", "LISTPACK", "ZIPLIST", "QUICKLIST", "DIGEST-VALUE", "HTSTATS-KEY"} {
		if Is(sub, s) {
			return true
		}
	}
	return false
}

func (p *place) keys(args [][]byte, dst []int) []int {
	from := p.from
	if p.word != "" {
		if from = p.search(args); from < 0 {
			return dst
		}
	}
	switch {
	case p.count:
		if p.at >= len(args) {
			return dst
		}
		n, err := strconv.Atoi(string(args[p.at]))
		if err != nil || n < 0 || n > len(args) || p.first+(n-1)*p.step >= len(args) {
			return dst
		}
		for i := range n {
			dst = append(dst, p.first+i*p.step)
		}
	default:
		last := from + p.last
		if p.last < 0 {
			last = len(args) + p.last
			if p.limit > 1 {
				last = from + (len(args)-from)/p.limit - 1
			}
		}
		if last >= len(args) && p.last > 0 {
			last = len(args) - 1
		}
		for i := from; i > 0 && i <= last && i < len(args); i += p.step {
			dst = append(dst, i)
		}
	}
	return dst
}

// search returns the index behind the word; -1 when it is not there.
func (p *place) search(args [][]byte) int {
	if p.from >= 0 {
		for i := p.from; i < len(args); i++ {
			if Is(args[i], p.word) {
				return i + 1
			}
		}
		return -1
	}
	for i := len(args) + p.from; i > 0; i-- {
		if Is(args[i], p.word) {
			return i + 1
		}
	}
	return -1
}
