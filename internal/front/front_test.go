// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/resp"
)

// load gives the same data to some connections.
func load(to ...*wire) {
	for _, w := range to {
		for i := range 40 {
			w.want("+OK\r\n", "SET k"+strconv.Itoa(i)+" v"+strconv.Itoa(i))
		}
		w.want(":2\r\n", "RPUSH list a b")
		w.want(":3\r\n", "SADD set{x} a b c")
		w.want(":2\r\n", "SADD other{x} b c")
	}
}

// sorted gives the elements of an array an order.
func sorted(f string) string {
	e := resp.Elements([]byte(f), nil)
	if len(e) == 0 {
		return f
	}
	slices.SortFunc(e, bytes.Compare)
	return strconv.Itoa(len(e)) + string(bytes.Join(e, nil))
}

func TestCrossShardCommandsAnswerLikeOneServer(t *testing.T) {
	t.Parallel()
	for _, proto := range []string{"2", "3"} {
		f, _ := servers(t, 3)
		many, one := f.client(t), dial(t, startServer(t))
		load(many, one)
		for _, w := range []*wire{many, one} {
			w.do("HELLO", proto)
		}
		for _, command := range []string{
			"MGET k1 k2 k3 nothing k4 k1 list", "MGET k1", "MGET", "MSET a 1 b 2 c 3 d 4 e 5 a 6", "MGET a b c d e", "MSET a", "MSET a 1 b",
			"EXISTS k1 k2 k3 k4 k1 nothing", "EXISTS", "TOUCH k1 k2 k3 nothing", "DEL k1 k2 k3 k4 k5 nothing k1", "UNLINK k6 k7 k8 k9 k6",
			"MGET k1 k2 k6 k7 k10", "DBSIZE", "KEYS *", "KEYS k1*", "KEYS none*", "DBSIZE x", "KEYS",
			"SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "SCRIPT LOAD return\x201", "SCRIPT LOAD nonsense\x20(",
			"SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db ffffffffffffffffffffffffffffffffffffffff",
			"EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 1 a", "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 1 b", "SCRIPT FLUSH",
			"EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 1 b", "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 1 c", "SCRIPT KILL",
			"PUBSUB CHANNELS", "PUBSUB NUMSUB a b", "PUBSUB NUMPAT", "PUBLISH a x", "SPUBLISH a x",
			"GET", "GET a b", "NONSENSE a b", "nonsense", "SUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "EXEC", "DISCARD", "MULTI x", "UNWATCH", "WATCH",
			"PING", "PING x", "PING x y", "ECHO x", "ECHO", "CLIENT GETNAME", "CLIENT SETNAME x", "CLIENT GETNAME", "CLIENT NONSENSE", "CLIENT",
			"CONFIG SET hash-max-listpack-entries 100", "CONFIG GET hash-max-listpack-entries", "CONFIG SET nonsense 1", "SWAPDB 0 1", "DBSIZE", "SWAPDB 0 1",
			"SINTER set{x} other{x}", "SINTERSTORE new{x} set{x} other{x}", "RENAME new{x} newer{x}", "OBJECT ENCODING list", "MEMORY USAGE nothing", "TYPE list", "LRANGE list 0 -1",
			"LMPOP 1 list LEFT COUNT 1", "SORT list ALPHA", "SELECT 1", "DBSIZE", "MSET a 1 b 2 c 3 d 4", "MGET a b c d", "SELECT 0", "MGET a b c d",
			"SELECT 99", "SELECT x", "SELECT", "SLOWLOG RESET", "RESET x", "WAIT 0 10", "CLIENT NO-EVICT ON", "CLIENT REPLY x", "FLUSHDB x", "FLUSHDB", "DBSIZE", "SELECT 1", "DBSIZE", "FLUSHALL",
			"DBSIZE", "RANDOMKEY", "RANDOMKEY x", "SCAN", "SCAN x", "FUNCTION LIST", "XREAD STREAMS nothing 0", "GETDEL nothing", "CLUSTER INFO", "READONLY",
		} {
			a, b := one.do(strings.Split(command, " ")...), many.do(strings.Split(command, " ")...)
			if sorted(a) != sorted(b) {
				t.Errorf("RESP%s %s: one server %q, front %q", proto, command, a, b)
			}
			if strings.HasPrefix(command, "MGET") && a != b {
				t.Errorf("RESP%s %s: order: one server %q, front %q", proto, command, a, b)
			}
		}
	}
}

func TestKeysOfSeveralShardsAreRefusedElsewhere(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 2)
	w := f.client(t)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	const refused = "-" + crossSlot + "\r\n"
	for _, command := range []string{"MSETNX A 1 B 2", "RENAME A B", "SINTER A B", "PFCOUNT A B", "BLPOP A B 1", "LMOVE A B LEFT LEFT", "EVAL x 2 A B", "XREAD STREAMS A B 0 0", "ZUNIONSTORE A 1 B", "SORT A STORE B", "COPY A B",
		"GEORADIUS A 1 1 1 m STORE B"} {
		w.want(refused, replaceKeys(command, a, b))
	}
	w.want("-ERR BY option of SORT denied in cluster mode.\r\n", "SORT "+a+" BY w_*")
	w.want("-ERR GET option of SORT denied in cluster mode.\r\n", "SORT "+a+" GET w_*")
	w.want("*0\r\n", "SORT "+a+" BY nosort GET #")
	w.want("-"+noMonitor+"\r\n", "MONITOR")
	w.want(":12182\r\n", "CLUSTER KEYSLOT foo")
	w.want(":12182\r\n", "CLUSTER KEYSLOT x{foo}y")
	w.want(bulk("s0"), "PROXY SHARDOF "+a)
	w.want(bulk("s1"), "PROXY SHARDOF "+b)
}

// replaceKeys puts keys in the place of the words A and B.
func replaceKeys(command, a, b string) string {
	words := strings.Fields(command)
	for i, w := range words {
		switch w {
		case "A":
			words[i] = a
		case "B":
			words[i] = b
		}
	}
	return strings.Join(words, " ")
}

func TestOneErrorStandsForTheWholeCommand(t *testing.T) {
	t.Parallel()
	f, addrs := servers(t, 3)
	w := f.client(t)
	keys := []string{keyOn(3, 0, "x"), keyOn(3, 1, "x"), keyOn(3, 2, "x")}
	tight := dial(t, addrs[1])
	tight.want("+OK\r\n", "CONFIG SET maxmemory 1 maxmemory-policy noeviction")
	defer tight.do("CONFIG", "SET", "maxmemory", "0")
	got := w.do("MSET", keys[0], "1", keys[1], "2", keys[2], "3")
	if !strings.HasPrefix(got, "-OOM ") {
		t.Fatalf("%q", got)
	}
	w.want("+OK\r\n", "SET "+keys[0]+" 1")
	if got := w.do("MGET", keys[0], keys[1], keys[2]); got != "*3\r\n"+bulk("1")+"$-1\r\n"+bulk("3") {
		t.Fatalf("%q", got)
	}
}

func TestAScanSeesEveryKeyOnce(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 3)
	w := f.client(t)
	const n = 3000
	for i := range n {
		w.send("SET", "key"+strconv.Itoa(i), "x")
	}
	for range n {
		w.next()
	}
	seen := map[string]int{}
	for cursor := "0"; ; {
		e := resp.Elements([]byte(w.do("SCAN", cursor, "COUNT", "100", "MATCH", "key*")), nil)
		for _, k := range resp.Elements(e[1], nil) {
			seen[string(resp.Text(k))]++
		}
		cursor = string(resp.Text(e[0]))
		if _, err := strconv.ParseInt(cursor, 10, 64); err != nil {
			t.Fatal(err)
		}
		if cursor == "0" {
			break
		}
	}
	if len(seen) != n {
		t.Fatalf("%d keys of %d", len(seen), n)
	}
	shards := map[int]bool{}
	for range 60 {
		shards[placeOver(3)(resp.Text([]byte(w.do("RANDOMKEY"))))] = true
	}
	if len(shards) != 3 {
		t.Fatalf("random keys came from %d shards", len(shards))
	}
	if got := w.do("SCAN", "1023"); got != "-ERR invalid cursor\r\n" {
		t.Fatalf("%q", got)
	}
}

func TestScriptsAreKnownWhereverTheirKeysAre(t *testing.T) {
	t.Parallel()
	f, addrs := servers(t, 2)
	w := f.client(t)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	const body, sha = "return redis.call('INCR', KEYS[1])", "c3a12f9a1a8ff3a1d2eb36f1d2bfc3d5"
	if got := w.do("EVAL", body, "1", a); got != ":1\r\n" {
		t.Fatal(got)
	}
	name := string(resp.Text([]byte(dial(t, addrs[0]).do("SCRIPT", "LOAD", body))))
	w.want(":1\r\n", "EVALSHA "+name+" 1 "+b) // told before it is asked
	dial(t, addrs[1]).want("+OK\r\n", "SCRIPT FLUSH")
	w.want(":2\r\n", "EVALSHA "+name+" 1 "+b) // told when it says that it has forgotten
	dial(t, addrs[0]).want("+OK\r\n", "SCRIPT FLUSH")
	w.want(":2\r\n", "EVALSHA "+name+" 1 "+a)
	const other = "return redis.call('DECR', KEYS[1])"
	otherName := string(resp.Text([]byte(dial(t, addrs[1]).do("SCRIPT", "LOAD", other))))
	if got := w.do("EVAL", other, "1", a); got != ":1\r\n" {
		t.Fatal(got)
	}
	dial(t, addrs[1]).want("+OK\r\n", "SCRIPT FLUSH")
	w.want("+OK\r\n", "MULTI")
	w.want("+QUEUED\r\n", "EVALSHA "+otherName+" 1 "+b)
	w.want("*1\r\n:1\r\n", "EXEC")
	w.want(":2\r\n", "INCR "+b)
	w.want("-NOSCRIPT No matching script. Please use EVAL.\r\n", "EVALSHA "+sha+"00000000 1 "+b)
	if got := w.do("FUNCTION", "LOAD", "#!lua name=l\nredis.register_function('f', function(k) return redis.call('INCR', k[1]) end)"); got != bulk("l") {
		t.Fatal(got)
	}
	w.want(":3\r\n", "FCALL f 1 "+b)
	dial(t, addrs[1]).want("+OK\r\n", "FUNCTION FLUSH")
	w.want(":4\r\n", "FCALL f 1 "+b)
	w.want("-ERR Function not found\r\n", "FCALL g 1 "+b)
	w.want(":5\r\n", "INCR "+b)
}

func TestInfoIsOfAllShards(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 3)
	w := f.client(t)
	load(w)
	text := string(resp.Text([]byte(w.do("INFO"))))
	m := fieldsOf(text)
	if m["db0"] == "" || pairIn(m["db0"], "keys") != 43 || m["redis_version"] == "" || m["shards"] != "3" || !strings.Contains(m["shard_s2"], "role=master,") || m["connected_clients"] != "1" {
		t.Fatal(text)
	}
	keys := int64(0)
	for _, s := range []string{"s0", "s1", "s2"} {
		keys += pairIn(m["shard_"+s], "keys")
	}
	if keys != 43 {
		t.Fatalf("%d keys", keys)
	}
	if text := w.do("INFO", "memory"); strings.Contains(text, "shard_") || !strings.Contains(text, "used_memory_human:") {
		t.Fatal(text)
	}
	if text := w.do("INFO", "shards"); !strings.Contains(text, "shard_s1:role=master") || strings.Contains(text, "redis_version") {
		t.Fatal(text)
	}
	if text := w.do("PROXY", "INFO", "s1", "server"); !strings.Contains(text, "redis_version") {
		t.Fatal(text)
	}
	w.want("-ERR there is no shard of this name\r\n", "PROXY INFO s9")
}

func TestTheConnectionsStateIsOnEachShard(t *testing.T) {
	t.Parallel()
	f, addrs := servers(t, 2)
	w := f.client(t)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	w.want("+OK\r\n", "CLIENT SETNAME me")
	w.want("+OK\r\n", "SELECT 3")
	w.want("+OK\r\n", "SET "+b+" 1")
	if got := dial(t, addrs[1]).do("CLIENT", "LIST"); !strings.Contains(got, "name=me ") || !strings.Contains(got, "db=3") {
		t.Fatal(got)
	}
	w.want("+OK\r\n", "SET "+a+" 1")
	w.want(":2\r\n", "DBSIZE")
	if got := w.do("HELLO", "3", "SETNAME", "you"); !strings.HasPrefix(got, "%7\r\n") || !strings.Contains(got, "id\r\n:1\r\n") || !strings.Contains(got, "proto\r\n:3") {
		t.Fatalf("%q", got)
	}
	w.want("_\r\n", "GET nothing")
	w.want("*2\r\n_\r\n_\r\n", "MGET "+a+"x "+b+"x")
	w.want(bulk("you"), "CLIENT GETNAME")
	w.want("+RESET\r\n", "RESET")
	w.want("$-1\r\n", "GET "+a)
	w.want(":0\r\n", "DBSIZE")
	w.want("$-1\r\n", "CLIENT GETNAME")
	w.want("-NOPROTO unsupported protocol version\r\n", "HELLO 4")
	w.raw("PING\r\nset 'in line' 1\r\nget \"in line\"\r\n")
	for _, want := range []string{"+PONG\r\n", "+OK\r\n", "$1\r\n1\r\n"} {
		if got := w.next(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	w.raw("CLIENT REPLY OFF\r\nSET off 1\r\nMGET off x y\r\nCLIENT REPLY ON\r\nCLIENT REPLY SKIP\r\nPING\r\nECHO x\r\nQUIT\r\n")
	for _, want := range []string{"+OK\r\n", "$1\r\nx\r\n", "+OK\r\n"} {
		if got := w.next(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	if err := w.ended(); err != nil {
		t.Fatal(err)
	}
}

func TestAPasswordIsCheckedByTheShards(t *testing.T) {
	t.Parallel()
	var shards []Shard
	for _, name := range []string{"a", "b"} {
		addr := startServer(t, "--requirepass", "secret")
		shards = append(shards, Shard{Name: name, Dial: dialer(addr)})
		admin := dial(t, addr)
		admin.want("+OK\r\n", "AUTH secret")
		admin.want("+OK\r\n", "ACL SETUSER reader on >pw ~* +@read +ping")
	}
	f := runFront(t, shards, func(o *Options) { o.Password = "secret" })
	w := f.client(t)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	w.want("-NOAUTH Authentication required.\r\n", "PING")
	w.want("-NOAUTH Authentication required.\r\n", "GET "+a)
	if got := w.do("AUTH", "wrong"); !strings.HasPrefix(got, "-WRONGPASS ") {
		t.Fatal(got)
	}
	if got := w.do("HELLO", "3"); !strings.HasPrefix(got, "-NOAUTH HELLO must") {
		t.Fatal(got)
	}
	w.raw("*11\r\n")
	if got := w.next(); got != "-ERR Protocol error: unauthenticated multibulk length\r\n" {
		t.Fatal(got)
	}
	w = f.client(t)
	w.want("+OK\r\n", "AUTH secret")
	w.want("+OK\r\n", "MSET "+a+" 1 "+b+" 2")
	w = f.client(t)
	if got := w.do("HELLO", "3", "AUTH", "reader", "pw"); got[0] != '%' {
		t.Fatal(got)
	}
	w.want("*2\r\n$1\r\n1\r\n$1\r\n2\r\n", "MGET "+a+" "+b)
	if got := w.do("MSET", a, "1", b, "2"); !strings.HasPrefix(got, "-NOPERM ") {
		t.Fatal(got)
	}
	if got := w.do("CLIENT", "LIST"); !strings.HasPrefix(got, "-NOPERM ") {
		t.Fatal(got)
	}
	if got := w.do("CLIENT", "KILL", "ID", "1"); !strings.HasPrefix(got, "-NOPERM ") {
		t.Fatal(got)
	}
}

func TestClientsAreThoseOfTheFront(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 2)
	w, o := f.client(t), f.client(t)
	b := keyOn(2, 1, "b")
	w.want(":1\r\n", "CLIENT ID")
	o.want(":2\r\n", "CLIENT ID")
	o.want("+OK\r\n", "CLIENT SETINFO LIB-NAME lib")
	o.send("BLPOP", b, "0")
	if !until(5*time.Second, func() bool { return strings.Contains(w.do("CLIENT", "LIST", "ID", "2"), "flags=b ") }) {
		t.Fatal(w.do("CLIENT", "LIST"))
	}
	if got := w.do("CLIENT", "LIST"); strings.Count(got, "id=") != 2 || !strings.Contains(got, "lib-name=lib ") || !strings.Contains(got, "cmd=blpop ") || !strings.Contains(got, "cmd=client|list ") {
		t.Fatal(got)
	}
	if !until(5*time.Second, func() bool { return w.do("CLIENT", "UNBLOCK", "2", "ERROR") == ":1\r\n" }) {
		t.Fatal("it cannot be unblocked")
	}
	if got := o.next(); !strings.HasPrefix(got, "-UNBLOCKED ") {
		t.Fatal(got)
	}
	w.want(":0\r\n", "CLIENT UNBLOCK 2")
	w.want(":0\r\n", "CLIENT KILL ID 77")
	w.want("-ERR No such client\r\n", "CLIENT KILL 127.0.0.1:1")
	w.want(":1\r\n", "CLIENT KILL ID 2")
	if err := o.ended(); err != nil {
		t.Fatal(err)
	}
	w.want(":1\r\n", "CLIENT KILL TYPE normal SKIPME no")
	if err := w.ended(); err != nil {
		t.Fatal(err)
	}
}
