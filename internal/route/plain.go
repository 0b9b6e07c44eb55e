// SPDX-License-Identifier: Apache-2.0

package route

import (
	"strconv"
	"strings"
)

// plain lists commands that a proxy may put between MULTI and EXEC of its own, with the number of their words as COMMAND
// states it (negative: at least as many). They act on keys that they name, mean the same there as outside, always answer
// with one reply, and never block. Everything else stays outside: what a server refuses in a transaction, scripts, whatever acts
// on a whole database or on the server, commands of modules.
const plain = `append:3 bitfield:-2 bitop:-4 copy:-3 decr:2 decrby:3 del:-2 expire:-3 expireat:-3 geoadd:-5 getdel:2
getex:-2 getset:3 hdel:-3 hincrby:4 hincrbyfloat:4 hmset:-4 hset:-4 hsetnx:4 incr:2 incrby:3 incrbyfloat:3
linsert:5 lmove:5 lpop:-2 lpush:-3 lpushx:-3 lrem:4 lset:4 ltrim:4 mset:-3 msetnx:-3 persist:2 pexpire:-3
pexpireat:-3 pfadd:-2 pfmerge:-2 psetex:4 rename:3 renamenx:3 rpop:-2 rpoplpush:3 rpush:-3 rpushx:-3 sadd:-3
sdiffstore:-3 set:-3 setbit:4 setex:4 setnx:3 setrange:4 sinterstore:-3 smove:4 spop:-2 srem:-3 sunionstore:-3
unlink:-2 xack:-4 xadd:-5 xdel:-3 xtrim:-4 zadd:-4 zdiffstore:-4 zincrby:4 zinterstore:-4 zpopmax:-2 zpopmin:-2
zrangestore:-5 zrem:-3 zremrangebylex:4 zremrangebyrank:4 zremrangebyscore:4 zunionstore:-4
bitcount:-2 exists:-2 get:2 getbit:3 getrange:4 hexists:3 hget:3 hgetall:2 hkeys:2 hlen:2 hmget:-3 hvals:2
lindex:3 llen:2 lrange:4 mget:-2 pttl:2 scard:2 sismember:3 smembers:2 smismember:-3 strlen:2 ttl:2 type:2 xlen:2
zcard:2 zcount:4 zmscore:-3 zrange:-4 zrank:3 zrevrank:3 zscore:3`

// notPlain are flags of COMMAND that keep a command out, whatever its name.
const notPlain = " blocking admin pubsub no_multi noscript no-multi "

// markPlain notes the words of the commands that may be put into a transaction.
func (t *Table) markPlain() {
	for f := range strings.FieldsSeq(plain) {
		name, words, _ := strings.Cut(f, ":")
		row := t.rows[strings.ToUpper(name)]
		if row == nil || row.odd || row.Class > Write {
			continue
		}
		if n, err := strconv.ParseInt(words, 10, 8); err == nil {
			row.words = int8(n)
		}
	}
}

// Plain reports whether a proxy may put the command, which has this many words, between MULTI and EXEC of its own.
func (r *Row) Plain(words int) bool {
	n := int(r.words)
	return n > 0 && words == n || n < 0 && words >= -n
}
