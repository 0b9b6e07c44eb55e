// SPDX-License-Identifier: Apache-2.0
// BullMQ with default settings: HOST PORT add N | work. Prints "added n", "done n" and "error TEXT"; ends when its
// standard input is closed.
const { Queue, Worker } = require('bullmq');

const [host, port, role, total] = process.argv.slice(2);
const connection = { host, port: Number(port) };
const say = (line) => process.stdout.write(`${line}\n`);
const failed = (e) => say(`error ${String(e.message).replace(/\n/g, ' ')}`);
process.stdin.on('end', () => process.exit(0));
process.stdin.resume();

async function add() {
  const queue = new Queue('jobs', { connection });
  queue.on('error', failed);
  for (let n = 1; n <= Number(total); n += 1) {
    for (let added = false; !added;) {
      try {
        await queue.add('job', { n });
        added = true;
        say(`added ${n}`);
      } catch (e) {
        failed(e);
        await new Promise((r) => setTimeout(r, 50));
      }
    }
  }
}

if (role === 'add') add();
else new Worker('jobs', async (job) => say(`done ${job.data.n}`), { connection, concurrency: 10 }).on('error', failed);
