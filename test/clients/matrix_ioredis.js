// SPDX-License-Identifier: Apache-2.0
// ioredis with default settings in one role of the client matrix: HOST PORT PREFIX main|pop|sub|scan.
const { Redis } = require('ioredis');
const { host, port, prefix, PUSH, same, lostWatch, report, run } = require('./matrix_report.js');

const c = new Redis({ host, port });
c.on('error', (e) => report('setup', 0, async () => { throw e; }));
c.defineCommand('push', { numberOfKeys: 1, lua: `-- helper\n${PUSH}` });
let sha;

// results gives the replies of a pipeline, or throws what failed in it.
function results(replies) {
  const errors = replies.map(([e]) => e).filter(Boolean);
  if (errors.length) throw new Error(errors.map((e) => e.message).join('; '));
  return replies.map(([, v]) => v);
}

run({
  setup: async () => {
    sha = await c.script('LOAD', PUSH);
    await c.xgroup('CREATE', `${prefix}stream`, 'g', '0', 'MKSTREAM');
  },
  loop: {
    strings: async (seq) => {
      await c.set(`${prefix}s:${seq}`, seq);
      return same(await c.get(`${prefix}s:${seq}`), seq);
    },
    pipeline: async (seq) => {
      const p = c.pipeline().rpush(`${prefix}pipeline`, seq).set(`${prefix}last`, seq).get(`${prefix}last`);
      for (let i = 0; i < 10; i += 1) p.incr(`${prefix}n`);
      return same(results(await p.exec())[2], seq);
    },
    transaction: async (seq) => {
      await c.watch(`${prefix}counter`);
      const n = Number(await c.get(`${prefix}counter`));
      const replies = await c.multi().set(`${prefix}counter`, n + 1).rpush(`${prefix}transaction`, seq).exec();
      if (replies === null) lostWatch();
      return same(results(replies).length, 2);
    },
    script: async (seq) => same(await c.push(`${prefix}script`, seq), seq),
    evalsha: async (seq) => same(await c.evalsha(sha, 1, `${prefix}evalsha`, seq), seq),
    blocking: async (seq) => {
      await c.lpush(`${prefix}queue`, seq);
      const moved = await c.brpoplpush(`${prefix}queue`, `${prefix}blocking`, 20);
      if (moved === null) throw new Error('nothing was moved');
      return moved;
    },
    stream: async (seq) => {
      await c.xadd(`${prefix}stream`, '*', 'n', seq);
      const read = await c.xreadgroup('GROUP', 'g', 'c', 'COUNT', 100, 'BLOCK', 1000, 'STREAMS', `${prefix}stream`, '>');
      const entries = Array.isArray(read) ? read[0][1] : Object.values(read)[0];
      for (const [id] of entries) same(await c.xack(`${prefix}stream`, 'g', id), 1);
    },
    publish: async (seq) => c.publish(`${prefix}channel`, seq),
  },
  pop: async () => {
    const got = await c.blpop(`${prefix}pop`, 20);
    if (got === null) throw new Error('nothing was popped');
    return got[1];
  },
  subscribe: async (got) => {
    c.on('message', (_, v) => got(v));
    await c.subscribe(`${prefix}channel`);
  },
  scan: () => c.scanStream({ match: `${prefix}fix:*`, count: 20 }),
});
