# SPDX-License-Identifier: Apache-2.0
"""Writes RPUSH key 1, 2, 3, … through redis-py with default settings, and prints one line for each attempt:
ok|err <seq> <start µs> <end µs> [error]. Ends when its standard input is closed.
With "sentinel NAME HOST PORT …" instead of "HOST PORT" it finds the primary through Sentinel; with "cluster HOST PORT" it is a
client of a cluster."""
import sys
import threading
import time

import redis
from redis.sentinel import Sentinel

key = sys.argv[1]
if sys.argv[2] == "sentinel":
    client = Sentinel([(h, int(p)) for h, p in zip(sys.argv[4::2], sys.argv[5::2])]).master_for(sys.argv[3])
elif sys.argv[2] == "cluster":
    client = redis.RedisCluster(host=sys.argv[3], port=int(sys.argv[4]))
else:
    client = redis.Redis(host=sys.argv[2], port=int(sys.argv[3]))
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
seq = 0
while not done.is_set():
    seq += 1
    start = time.time_ns() // 1000
    try:
        client.rpush(key, seq)
        out = "ok"
        why = ""
    except Exception as e:  # every error is reported, whatever it is
        out, why = "err", str(e).replace("\n", " ")
    print(out, seq, start, time.time_ns() // 1000, why, flush=True)
    time.sleep(0.001)
