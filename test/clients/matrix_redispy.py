# SPDX-License-Identifier: Apache-2.0
"""redis-py with default settings in one role of the client matrix: HOST PORT PREFIX main|pop|sub|scan.
Prints a line of JSON for each operation; ends when its standard input is closed."""
import json
import os
import sys
import threading
import time

import redis

host, port, prefix, role = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
PUSH = "redis.call('RPUSH', KEYS[1], ARGV[1]) return ARGV[1]"
r = redis.Redis(host=host, port=port, decode_responses=True)
done = threading.Event()


def ends():
    sys.stdin.read()
    done.set()


threading.Thread(target=ends, daemon=True).start()


def now():
    return time.time_ns() // 1000


def report(feature, seq, op):
    start, err, value = now(), "", ""
    try:
        value = op()
    except redis.WatchError:
        err = "EXEC answered null"
    except Exception as e:  # every error is reported, whatever it is
        err = f"{type(e).__name__}: {e}"
    print(json.dumps({"f": feature, "seq": seq, "s": start, "e": now(), "err": err, "v": "" if value is None else str(value)}), flush=True)


def same(got, expected):
    if str(got) != str(expected):
        raise ValueError(f"got {got!r}, want {expected!r}")
    return got


def strings(seq):
    r.set(f"{prefix}s:{seq}", seq)
    return same(r.get(f"{prefix}s:{seq}"), seq)


def pipeline(seq):
    p = r.pipeline(transaction=False)
    p.rpush(prefix + "pipeline", seq).set(prefix + "last", seq).get(prefix + "last")
    for _ in range(10):
        p.incr(prefix + "n")
    return same(p.execute()[2], seq)


def transaction(seq):
    with r.pipeline() as p:
        p.watch(prefix + "counter")
        n = int(p.get(prefix + "counter") or 0)
        p.multi()
        p.set(prefix + "counter", n + 1)
        p.rpush(prefix + "transaction", seq)
        return same(len(p.execute()), 2)


helper = r.register_script("-- helper\n" + PUSH)


def script(seq):
    return same(helper(keys=[prefix + "script"], args=[seq]), seq)


def evalsha(seq):
    return same(r.evalsha(sha, 1, prefix + "evalsha", seq), seq)


def blocking(seq):
    r.lpush(prefix + "queue", seq)
    moved = r.brpoplpush(prefix + "queue", prefix + "blocking", 20)
    if moved is None:
        raise ValueError("nothing was moved")
    return moved


def stream(seq):
    r.xadd(prefix + "stream", {"n": seq})
    read = r.xreadgroup("g", "c", {prefix + "stream": ">"}, count=100, block=1000)
    for entry, _ in read[0][1]:
        same(r.xack(prefix + "stream", "g", entry), 1)


def publish(seq):
    return r.publish(prefix + "channel", seq)


def pop():
    got = r.blpop(prefix + "pop", 20)
    if got is None:
        raise ValueError("nothing was popped")
    return got[1]


def scan():
    seen = set()
    for i, key in enumerate(r.scan_iter(prefix + "fix:*", count=20), 1):
        seen.add(key)
        if i % 20 == 0:
            time.sleep(0.01)
    missing = [k for k in (f"{prefix}fix:{i}" for i in range(500)) if k not in seen]
    if missing:
        raise ValueError(f"a complete SCAN did not return {len(missing)} of 500 keys that were there all the time: {missing[:3]}")


def subscriber():
    while True:
        try:
            s = r.pubsub(ignore_subscribe_messages=True)
            s.subscribe(prefix + "channel")
            for m in s.listen():
                report("message", 0, lambda: m["data"])
        except Exception as e:
            why = e

            def failed():
                raise why

            report("message", 0, failed)
            time.sleep(0.1)


if role in ("pop", "sub"):
    threading.Thread(target=lambda: (done.wait(), os._exit(0)), daemon=True).start()
if role == "main":
    sha = r.script_load(PUSH)
    report("setup", 0, lambda: r.xgroup_create(prefix + "stream", "g", "0", mkstream=True))
if role == "sub":
    subscriber()
seq = 0
while not done.is_set():
    seq += 1
    if role == "main":
        for f in (strings, pipeline, transaction, script, evalsha, blocking, stream, publish):
            report(f.__name__, seq, lambda: f(seq))
        time.sleep(0.005)
    elif role == "pop":
        report("pop", seq, pop)
    else:
        report("scan", seq, scan)
