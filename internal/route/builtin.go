// SPDX-License-Identifier: Apache-2.0

package route

// The flags "readonly" and "write" of COMMAND in Redis 7.0.15, with the additions of Redis 7.2–8.2 and Valkey 7.2–8.1.
const (
	builtinReads = `bitcount bitfield_ro bitpos dbsize dump eval_ro evalsha_ro exists expiretime fcall_ro geodist
geohash geopos georadius_ro georadiusbymember_ro geosearch get getbit getrange hexists hget hgetall hkeys hlen hmget
hrandfield hscan hstrlen hvals keys lcs lindex llen lolwut lpos lrange mget object pexpiretime pttl randomkey
scan scard sdiff sinter sintercard sismember smembers smismember sort_ro srandmember sscan strlen substr sunion touch
ttl type xlen xpending xrange xrevrange xinfo zcard zcount zdiff zinter zintercard zlexcount zmscore zrandmember zrange
zrangebylex zrangebyscore zrank zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore zunion
hexpiretime hpexpiretime httl hpttl digest vcard vdim vemb vgetattr vinfo vismember vlinks vrandmember vsim vrange`

	builtinHarmless = `ping echo time command info lastsave pubsub role slowlog latency lolwut pfselftest memory
pfcount`

	builtinWrites = `append bitfield bitop copy decr decrby del expire expireat flushall flushdb geoadd georadius
georadiusbymember geosearchstore getdel getex getset hdel hincrby hincrbyfloat hmset hset hsetnx incr incrby
incrbyfloat linsert lmove lmpop lpop lpush lpushx lrem lset ltrim migrate move mset msetnx persist pexpire pexpireat
pfadd pfdebug pfmerge psetex rename renamenx restore restore-asking rpop rpoplpush rpush rpushx sadd sdiffstore set
setbit setex setnx setrange sinterstore smove sort spop srem sunionstore swapdb unlink xack xadd xautoclaim xclaim xdel
xgroup xsetid xtrim zadd zdiffstore zincrby zinterstore zmpop zpopmax zpopmin zrangestore zrem zremrangebylex
zremrangebyrank zremrangebyscore zunionstore eval evalsha fcall function script publish spublish acl module
bgrewriteaof bgsave save hexpire hexpireat hpexpire hpexpireat hpersist hgetdel hgetex hsetex xackdel xdelex delifeq
delex msetex vadd vrem vsetattr`
)

// special is a group of commands whose treatment does not follow from a server's flags.
type special struct {
	names string
	flags Flags
	class Class
	verb  verb
}

// verb selects the code that looks at a command's arguments.
type verb uint8

const (
	verbNone verb = iota
	verbClient
	verbConfig
	verbDebug
	verbCluster
	verbStreamRead
	verbScript
	verbReplicaof
	verbShutdown
	verbFailover
	verbSync
	verbSentinel
	verbInfo
)

func specials() []special {
	return []special{
		{"multi", 0, Multi, verbNone},
		{"exec", 0, Exec, verbNone},
		{"discard", 0, Discard, verbNone},
		{"watch", 0, Watch, verbNone},
		{"unwatch", 0, Unwatch, verbNone},
		{"blpop brpop brpoplpush blmove blmpop bzpopmin bzpopmax bzmpop", Blocking, Block, verbNone},
		{"wait waitaof", Blocking, Wait, verbNone},
		{"xread", Readonly, Read, verbStreamRead},
		{"xreadgroup", 0, Write, verbStreamRead},
		{"subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe", NoMulti, Pubsub, verbNone},
		{"monitor", NoMulti, Monitor, verbNone},
		{"hello auth quit reset", 0, Local, verbNone},
		{"post host:", 0, Local, verbNone}, // HTTP: servers end the connection, which must not be one that others share
		{"select readonly readwrite asking", 0, Local, verbNone},
		{"proxy", 0, Local, verbNone}, // of Redoubt itself
		{"client", 0, Local, verbClient},
		{"config", 0, Write, verbConfig},
		{"debug", 0, Write, verbDebug},
		{"cluster", 0, Local, verbCluster},
		{"script", 0, Write, verbScript},
		{"info", Harmless, Read, verbInfo},
		{"replicaof slaveof", 0, Forbidden, verbReplicaof},
		{"shutdown", 0, Forbidden, verbShutdown},
		{"failover", 0, Forbidden, verbFailover},
		{"psync sync replconf", 0, Forbidden, verbSync},
		{"sentinel", 0, Write, verbSentinel},
		// Their flags say read-only, but they write or may block.
		{"pfcount", 0, Write, verbNone},
	}
}
