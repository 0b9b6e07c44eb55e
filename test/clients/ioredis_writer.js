// SPDX-License-Identifier: Apache-2.0
// Writes RPUSH key 1, 2, 3, … through ioredis with default settings, and prints one line for each attempt:
// ok|err <seq> <start µs> <end µs> [error]. Ends when its standard input is closed.
// With "sentinel NAME HOST PORT [HOST PORT]…" instead of "HOST PORT" it finds the primary through Sentinel, with the
// password in WRITER_PASSWORD; with "cluster HOST PORT" it is a client
// of a cluster.
const ioredis = require('ioredis');
const Redis = ioredis.Redis || ioredis;
const [key, ...rest] = process.argv.slice(2);
const pairs = (l) => (l.length ? [{ host: l[0], port: Number(l[1]) }, ...pairs(l.slice(2))] : []);
const make = {
  sentinel: () => new Redis({ sentinels: pairs(rest.slice(2)), name: rest[1], password: process.env.WRITER_PASSWORD || undefined }),
  cluster: () => new ioredis.Cluster([{ host: rest[1], port: Number(rest[2]) }]),
};
const client = make[rest[0]] ? make[rest[0]]() : new Redis({ host: rest[0], port: Number(rest[1]) });
client.on('error', () => {});
let done = false;
process.stdin.on('end', () => { done = true; });
process.stdin.resume();
const now = () => Math.round(performance.timeOrigin * 1000 + performance.now() * 1000);
(async () => {
  for (let seq = 1; !done; seq++) {
    const start = now();
    let out = 'ok';
    let why = '';
    try {
      await client.rpush(key, seq);
    } catch (e) {
      out = 'err';
      why = String(e.message).replace(/\n/g, ' ');
    }
    process.stdout.write(`${out} ${seq} ${start} ${now()} ${why}\n`);
    await new Promise((r) => setTimeout(r, 1));
  }
  process.exit(0);
})();
