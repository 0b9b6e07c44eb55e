// SPDX-License-Identifier: Apache-2.0
// What the Node programs of the client matrix have in common: one line of JSON for each operation, and the end of the
// program when its standard input is closed. run() takes the features of one library.
const [host, port, prefix, role] = process.argv.slice(2);
const PUSH = "redis.call('RPUSH', KEYS[1], ARGV[1]) return ARGV[1]";
const pause = (ms) => new Promise((r) => setTimeout(r, ms));
const now = () => Date.now() * 1000; // the wall clock, as the test has it
let done = false;
process.stdin.on('end', () => {
  done = true;
  if (role === 'pop' || role === 'sub') process.exit(0);
});
process.stdin.resume();

async function report(f, seq, op) {
  const s = now();
  let err = '';
  let v = '';
  try {
    v = await op();
  } catch (e) {
    err = String(e.message || e) || e.constructor.name;
    for (const each of e.errors || e.replies || []) if (each instanceof Error) err += `; ${each.message}`;
  }
  process.stdout.write(`${JSON.stringify({ f, seq, s, e: now(), err, v: String(v ?? '') })}\n`);
}

function same(got, expected) {
  if (String(got) !== String(expected)) throw new Error(`got ${got}, want ${expected}`);
  return got;
}

function lostWatch() {
  throw new Error('EXEC answered null');
}

async function scanOnce(keys) {
  const seen = new Set();
  let calls = 0;
  for await (const page of keys) {
    for (const k of page) {
      seen.add(k);
      calls += 1;
      if (calls % 20 === 0) await pause(10);
    }
  }
  const missing = [];
  for (let i = 0; i < 500; i += 1) if (!seen.has(`${prefix}fix:${i}`)) missing.push(i);
  if (missing.length) throw new Error(`a complete SCAN did not return ${missing.length} of 500 keys that were there all the time: ${missing.slice(0, 3)}`);
}

// run plays the role; features is { setup, loop: {name: op(seq)}, pop, subscribe(got), scan }, all of them async.
async function run({ setup, loop, pop, subscribe, scan }) {
  if (role === 'sub') {
    await subscribe((v) => report('message', 0, async () => v));
    return;
  }
  if (role === 'main') await report('setup', 0, setup);
  for (let seq = 1; !done; seq += 1) {
    if (role === 'main') {
      for (const [f, op] of Object.entries(loop)) await report(f, seq, () => op(seq));
      await pause(5);
    } else if (role === 'pop') await report('pop', seq, pop);
    else await report('scan', seq, () => scanOnce(scan()));
  }
  process.exit(0);
}

module.exports = { host, port: Number(port), prefix, role, PUSH, same, lostWatch, report, run };
