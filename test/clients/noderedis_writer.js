// SPDX-License-Identifier: Apache-2.0
// Writes RPUSH key 1, 2, 3, … through node-redis with default settings, which finds the primary through Sentinel: KEY NAME HOST PORT [HOST
// PORT]…. Prints one line for each attempt: ok|err <seq> <start µs> <end µs> [error]. Ends when its standard input is closed.
const { createSentinel } = require('redis');
const [key, name, ...rest] = process.argv.slice(2);
const pairs = (l) => (l.length ? [{ host: l[0], port: Number(l[1]) }, ...pairs(l.slice(2))] : []);
const client = createSentinel({ name, sentinelRootNodes: pairs(rest) });
client.on('error', () => {});
let done = false;
process.stdin.on('end', () => { done = true; });
process.stdin.resume();
const now = () => Math.round(performance.timeOrigin * 1000 + performance.now() * 1000);
(async () => {
  await client.connect();
  for (let seq = 1; !done; seq++) {
    const start = now();
    let out = 'ok';
    let why = '';
    try {
      await client.rPush(key, String(seq));
    } catch (e) {
      out = 'err';
      why = String(e.message).replace(/\n/g, ' ');
    }
    process.stdout.write(`${out} ${seq} ${start} ${now()} ${why}\n`);
    await new Promise((r) => setTimeout(r, 1));
  }
  process.exit(0);
})();
