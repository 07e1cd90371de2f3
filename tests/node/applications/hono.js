// The same routes on hono, which answers the requests of browsers' `fetch`: an adapter translates
// those of Node.
'use strict';

const { serve } = require('@hono/node-server');
const { Hono } = require('hono');

const application = new Hono();
application.use((context, next) => {
  context.header('X-Worker', String(process.pid));
  return next();
});
application.get('/hello/:name', (context) => context.text(`hello ${context.req.param('name')}`));
application.post('/sum', async (context) => {
  const numbers = await context.req.json();
  return context.json({ sum: numbers.reduce((sum, next) => sum + next, 0) });
});
application.get('/fail', () => {
  throw new Error('on purpose');
});
application.onError((error, context) => context.text(error.message, 500));
serve({ fetch: application.fetch, port: 0, hostname: '127.0.0.1' });
