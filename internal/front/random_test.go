// SPDX-License-Identifier: Apache-2.0

package front

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// grammar are commands whose result does not depend on where keys are. K is a key, T one of a group that shares a shard, V a value,
// N a small number, F a float, C another key of the same group.
var grammar = strings.Split(`GET K|SET K V|SET K V EX 100|SETNX K V|GETSET K V|APPEND K V|STRLEN K|GETRANGE K N N|SETRANGE K N V|INCR K|DECRBY K N|INCRBYFLOAT K F
MGET K K K|MGET K K K K K K|MSET K V K V K V|DEL K K|DEL K|UNLINK K K K|EXISTS K K K K|TOUCH K K|EXISTS K|TYPE K|PERSIST K|EXPIRE K 1000
HSET K V V|HGET K V|HDEL K V|HLEN K|HMGET K V V|HINCRBY K V N|LPUSH K V V|RPUSH K V|LPOP K|RPOP K N|LLEN K|LRANGE K 0 -1|LINDEX K N|LSET K N V|LREM K 0 V
SADD K V|SREM K V|SCARD K|SISMEMBER K V|ZADD K N V|ZSCORE K V|ZRANGE K 0 -1 WITHSCORES|ZRANK K V|ZREM K V|ZPOPMIN K|SETBIT K N 1|BITCOUNT K|PFADD K V|PFCOUNT K
COPY T C|RENAME T C|SINTER T C|SUNIONSTORE T C|LMOVE T C LEFT RIGHT|ZUNIONSTORE T 1 C|BLPOP T C 0.01|BLMPOP 0.01 2 T C LEFT|GETDEL K|GETEX K PERSIST|OBJECT ENCODING K
DBSIZE|PING|ECHO V|EVAL return{KEYS[1],redis.call('type',KEYS[1])} 1 K|NONSENSE K|GET|SET K|MGET|MSET K V K|XADD K N-1 V V|XLEN K|XRANGE K - +|SORT K LIMIT 0 3 ALPHA
MULTI|EXEC|DISCARD|INCR T|WATCH T|UNWATCH|SELECT 0|SELECT 1|SINTERCARD 2 T C LIMIT N|LPOS K V|PING V|LCS T C|BITOP AND T T C|CLIENT ID x|HELLO 9`, "\n")

// inventor invents the commands of one client. Its keys are its own, so that clients do not see each other.
type inventor struct {
	*rand.Rand
	id int
}

func (r *inventor) command() []string {
	lines := strings.Split(grammar[r.IntN(len(grammar))], "|")
	words := strings.Fields(lines[r.IntN(len(lines))])
	group := strconv.Itoa(r.IntN(4))
	for i, w := range words {
		switch w {
		case "K":
			words[i] = fmt.Sprintf("c%d:%d", r.id, r.IntN(12))
		case "T", "C":
			words[i] = fmt.Sprintf("c%d:%s{g%d:%s}", r.id, strconv.Itoa(r.IntN(3)), r.id, group)
		case "V":
			words[i] = string(rune('a' + r.IntN(5)))
			if r.IntN(50) == 0 {
				words[i] = strings.Repeat("long", 1+r.IntN(20_000))
			}
		case "N":
			words[i] = strconv.Itoa(r.IntN(20))
		case "N-1":
			words[i] = strconv.Itoa(r.IntN(1000)) + "-1"
		case "F":
			words[i] = "0.5"
		}
	}
	return words
}

// inside reports whether a command may stand in a transaction here: those of several shards are refused there.
func inside(words []string, key string) []string {
	switch words[0] {
	case "EXEC", "DISCARD":
		return words
	}
	return []string{"INCR", key}
}

// TestRandomPipelinesAreAnsweredLikeByOneServer compares byte for byte, in both protocols, with several clients at once.
func TestRandomPipelinesAreAnsweredLikeByOneServer(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 3)
	rounds := 150
	if v, err := strconv.Atoi(os.Getenv("REDOUBT_ROUNDS")); err == nil {
		rounds = v
	}
	compareClients(t, f.client, rounds)
}

// compareClients has four clients at once say the same to one server and to what connects to many.
func compareClients(t *testing.T, connect func(t testing.TB) *wire, rounds int) {
	t.Helper()
	reference := startServer(t)
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("REDOUBT_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("REDOUBT_SEED=%d", seed)
	var wg sync.WaitGroup
	for id := range 4 {
		one, many := dial(t, reference), connect(t)
		if id%2 == 1 {
			one.do("HELLO", "3")
			many.do("HELLO", "3")
		}
		wg.Go(func() {
			compareRandom(t, &inventor{Rand: rand.New(rand.NewPCG(seed, uint64(id))), id: id}, one, many, rounds)
		})
	}
	wg.Wait()
}

func compareRandom(t *testing.T, r *inventor, one, many *wire, rounds int) {
	for round := range rounds {
		var commands [][]string
		multi := ""
		for range 1 + r.IntN(40) {
			words := r.command()
			switch {
			case words[0] == "DBSIZE": // the others write meanwhile
				continue
			case multi != "":
				words = inside(words, multi)
			case words[0] == "MULTI":
				multi = fmt.Sprintf("c%d:0{g%d:0}", r.id, r.id)
			case words[0] == "WATCH":
				words = []string{"WATCH", fmt.Sprintf("c%d:0{g%d:0}", r.id, r.id)}
			}
			if words[0] == "EXEC" || words[0] == "DISCARD" {
				multi = ""
			}
			commands = append(commands, words)
		}
		if multi != "" {
			commands = append(commands, []string{"EXEC"})
		}
		commands = append(commands, []string{"UNWATCH"})
		for _, w := range []*wire{one, many} {
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for _, c := range commands {
					w.send(c...)
				}
			}()
			defer func() { <-sent }()
		}
		for i, c := range commands {
			a, err := one.try(20 * time.Second)
			if err != nil {
				t.Errorf("round %d: server: %v", round, err)
				return
			}
			b, err := many.try(20 * time.Second)
			if err != nil {
				t.Errorf("round %d: front does not answer %.200q, the last of %.2000q: %v", round, c, commands[:i], err)
				return
			}
			if a != b && sorted(a) != sorted(b) {
				t.Errorf("round %d: %.200q: server %.300q, front %.300q; before: %.2000q", round, c, a, b, commands[:i])
				return
			}
		}
	}
}
