# SPDX-License-Identifier: Apache-2.0
"""Uses redis-py's RedisCluster as an application does; prints "all well" at the end."""
import sys

import redis

c = redis.RedisCluster(host=sys.argv[1], port=int(sys.argv[2]))
for i in range(200):
    assert c.set(f"py:{i}", i)
for i in range(200):
    assert int(c.get(f"py:{i}")) == i
p = c.pipeline()
for i in range(50):
    p.incr(f"py:{i}")
assert p.execute() == [i + 1 for i in range(50)]
assert c.mset_nonatomic({f"py:{i}": "x" for i in range(50)})
assert c.mget_nonatomic([f"py:{i}" for i in range(50)]) == [b"x"] * 50
assert c.delete(*[f"py:{i}" for i in range(200)]) == 200
assert c.mset({"{t}1": 1, "{t}2": 2}) and c.mget("{t}1", "{t}2") == [b"1", b"2"]
assert c.eval("return redis.call('get', KEYS[1])", 1, "{t}1") == b"1"
assert len(c.get_primaries()) == 3
assert c.keyslot("{t}1") == c.cluster_keyslot("{t}1")
c.delete("{t}1", "{t}2")
print("all well", len(c.get_nodes()), "nodes")
