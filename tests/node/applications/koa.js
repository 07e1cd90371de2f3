// The same routes on koa, whose body is read by hand and whose errors middleware catches.
'use strict';

const Koa = require('koa');

const application = new Koa();
application.use(async (context, next) => {
  context.set('X-Worker', String(process.pid));
  try {
    await next();
  } catch (error) {
    context.status = 500;
    context.body = error.message;
  }
});
application.use(async (context) => {
  const { path, req: request } = context;
  const [, name] = /^\/hello\/(.+)$/.exec(path) ?? [];
  if (name !== undefined) context.body = `hello ${name}`;
  if (path === '/fail') throw new Error('on purpose');
  if (path !== '/sum') return;
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const numbers = JSON.parse(Buffer.concat(chunks));
  context.body = { sum: numbers.reduce((sum, next) => sum + next, 0) };
});
application.listen(0, '127.0.0.1');
