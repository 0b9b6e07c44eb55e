# SPDX-License-Identifier: Apache-2.0
"""Celery with REDIS_URL as its broker and its results' backend, and default settings except the visibility timeout: the
default gives a job that a lost connection took along to a worker after an hour. As a program it adds N jobs, prints
"added n", "result n" and "error TEXT", and ends. The worker imports it; its jobs print "done n"."""
import os
import sys
import time

import celery

app = celery.Celery("celery_jobs", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
if "VISIBILITY" in os.environ:
    app.conf.broker_transport_options = {"visibility_timeout": int(os.environ["VISIBILITY"])}


@app.task(name="job")
def job(n):
    os.write(1, f"done {n}\n".encode())  # past Celery's own use of standard output
    return n


def add(n):
    while True:
        try:
            return job.delay(n)
        except Exception as e:  # every error is reported, whatever it is
            print("error", type(e).__name__, str(e).replace("\n", " "), flush=True)
            time.sleep(0.05)


def await_result(n, result):
    try:
        if result.get(timeout=60) != n:
            raise ValueError("a wrong result")
        print("result", n, flush=True)
    except Exception as e:
        print(f"error result of {n}: {type(e).__name__} {e}", flush=True)


if __name__ == "__main__":
    for n in range(1, int(sys.argv[1]) + 1):
        added = add(n)
        print("added", n, flush=True)
        if n % 10 == 0:  # some that wait for the result from the beginning
            await_result(n, added)
