// The same routes on fastify, which starts asynchronously and has schemas of its own.
'use strict';

const application = require('fastify')();

application.addHook('onRequest', async (request, reply) => {
  reply.header('X-Worker', String(process.pid));
});
application.get('/hello/:name', async (request) => `hello ${request.params.name}`);
const schema = { body: { type: 'array', items: { type: 'number' } } };
application.post('/sum', { schema }, async (request) => ({
  sum: request.body.reduce((sum, next) => sum + next, 0),
}));
application.get('/fail', async () => {
  throw new Error('on purpose');
});
application.setErrorHandler((error, request, reply) => reply.code(500).send(error.message));
application.listen({ port: 0, host: '127.0.0.1' });
