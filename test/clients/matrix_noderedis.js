// SPDX-License-Identifier: Apache-2.0
// node-redis with default settings in one role of the client matrix: HOST PORT PREFIX main|pop|sub|scan.
const { createClient, defineScript, WatchError } = require('redis');
const { host, port, prefix, PUSH, same, lostWatch, report, run } = require('./matrix_report.js');

const c = createClient({
  url: `redis://${host}:${port}`,
  scripts: {
    push: defineScript({
      SCRIPT: `-- helper\n${PUSH}`,
      NUMBER_OF_KEYS: 1,
      parseCommand(parser, key, v) { parser.pushKey(key); parser.push(v); },
      transformReply: (reply) => reply,
    }),
  },
});
c.on('error', (e) => report('setup', 0, async () => { throw e; }));
let sha;

async function transaction(seq) {
  await c.watch(`${prefix}counter`);
  const n = Number(await c.get(`${prefix}counter`));
  try {
    const replies = await c.multi().set(`${prefix}counter`, String(n + 1)).rPush(`${prefix}transaction`, String(seq)).exec();
    return same(replies.length, 2);
  } catch (e) {
    if (e instanceof WatchError) lostWatch();
    throw e;
  }
}

c.connect().then(() => run({
  setup: async () => {
    sha = await c.scriptLoad(PUSH);
    await c.xGroupCreate(`${prefix}stream`, 'g', '0', { MKSTREAM: true });
  },
  loop: {
    strings: async (seq) => {
      await c.set(`${prefix}s:${seq}`, String(seq));
      return same(await c.get(`${prefix}s:${seq}`), seq);
    },
    pipeline: async (seq) => {
      const all = [c.rPush(`${prefix}pipeline`, String(seq)), c.set(`${prefix}last`, String(seq)), c.get(`${prefix}last`)];
      for (let i = 0; i < 10; i += 1) all.push(c.incr(`${prefix}n`));
      const replies = await Promise.allSettled(all); // sent at once: that is how this library pipelines
      const errors = replies.filter((r) => r.status === 'rejected').map((r) => r.reason.message);
      if (errors.length) throw new Error(errors.join('; '));
      return same(replies[2].value, seq);
    },
    transaction,
    script: async (seq) => same(await c.push(`${prefix}script`, String(seq)), seq),
    evalsha: async (seq) => same(await c.evalSha(sha, { keys: [`${prefix}evalsha`], arguments: [String(seq)] }), seq),
    blocking: async (seq) => {
      await c.lPush(`${prefix}queue`, String(seq));
      const moved = await c.brPopLPush(`${prefix}queue`, `${prefix}blocking`, 20);
      if (moved === null) throw new Error('nothing was moved');
      return moved;
    },
    stream: async (seq) => {
      await c.xAdd(`${prefix}stream`, '*', { n: String(seq) });
      const read = await c.xReadGroup('g', 'c', { key: `${prefix}stream`, id: '>' }, { COUNT: 100, BLOCK: 1000 });
      for (const { id } of read[0].messages) same(await c.xAck(`${prefix}stream`, 'g', id), 1);
    },
    publish: async (seq) => c.publish(`${prefix}channel`, String(seq)),
  },
  pop: async () => {
    const got = await c.blPop(`${prefix}pop`, 20);
    if (got === null) throw new Error('nothing was popped');
    return got.element;
  },
  subscribe: (got) => c.subscribe(`${prefix}channel`, (v) => got(v)),
  scan: () => c.scanIterator({ MATCH: `${prefix}fix:*`, COUNT: 20 }),
}));
