// SPDX-License-Identifier: Apache-2.0
// express-session with connect-redis and node-redis, with default settings: HOST PORT. Prints "port N", and "error TEXT".
// POST /session?v=V begins a session that remembers V and answers when it is stored; GET /session answers V. Ends when its
// standard input is closed.
const express = require('express');
const session = require('express-session');
const { RedisStore } = require('connect-redis');
const { createClient } = require('redis');

const [host, port] = process.argv.slice(2);
const say = (line) => process.stdout.write(`${line}\n`);
process.stdin.on('end', () => process.exit(0));
process.stdin.resume();

const client = createClient({ url: `redis://${host}:${port}` });
client.on('error', (e) => say(`error ${e.message}`));
client.connect().then(() => {
  const app = express();
  app.use(session({ store: new RedisStore({ client }), resave: false, saveUninitialized: false, secret: 'for the test' }));
  app.post('/session', (req, res, next) => {
    req.session.v = req.query.v;
    req.session.save((e) => (e ? next(e) : res.send('stored')));
  });
  app.get('/session', (req, res) => res.send(String(req.session.v)));
  app.use((e, req, res, next) => res.status(500).send(String(e.message)));
  const server = app.listen(0, '127.0.0.1', () => say(`port ${server.address().port}`));
});
