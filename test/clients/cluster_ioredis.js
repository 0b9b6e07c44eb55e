// SPDX-License-Identifier: Apache-2.0
// Uses ioredis' Cluster as an application does; prints "all well" at the end.
const assert = require('assert');
const { Cluster } = require('ioredis');
const c = new Cluster([{ host: process.argv[2], port: Number(process.argv[3]) }]);
(async () => {
  await Promise.all(Array.from({ length: 200 }, (_, i) => c.set(`io:${i}`, i)));
  const got = await Promise.all(Array.from({ length: 200 }, (_, i) => c.get(`io:${i}`)));
  got.forEach((v, i) => assert.strictEqual(v, String(i)));
  const p = c.pipeline();
  for (let i = 0; i < 50; i++) p.incr(`{p}:${i}`);
  (await p.exec()).forEach(([err, v]) => { assert.ifError(err); assert.ok(v >= 1); });
  const tx = await c.multi().set('{m}a', 1).incr('{m}a').exec();
  assert.strictEqual(tx[1][1], 2);
  assert.strictEqual(await c.eval("return redis.call('get', KEYS[1])", 1, '{m}a'), '2');
  assert.strictEqual(c.nodes('master').length, 3);
  const sub = c.duplicate();
  const heard = new Promise((r) => { sub.on('message', (_, m) => r(m)); });
  await sub.subscribe('io-news');
  await c.publish('io-news', 'x');
  assert.strictEqual(await heard, 'x');
  await Promise.all([...Array.from({ length: 200 }, (_, i) => c.del(`io:${i}`)), c.del('{m}a')]);
  console.log('all well', c.nodes().length, 'nodes');
  process.exit(0);
})().catch((e) => { console.error(e); process.exit(1); });
