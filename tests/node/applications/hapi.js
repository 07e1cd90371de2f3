// The same routes on hapi, which counts its connections itself, and whose program stops it when it
// is told to end.
'use strict';

const { server: create } = require('@hapi/hapi');

const server = create({ port: 0, host: '127.0.0.1', debug: false });
server.ext('onPreResponse', ({ response }, toolkit) => {
  const answer = response.isBoom ? toolkit.response(response.message).code(500) : response;
  return answer.header('X-Worker', String(process.pid));
});
server.route([
  { method: 'GET', path: '/hello/{name}', handler: ({ params }) => `hello ${params.name}` },
  {
    method: 'POST',
    path: '/sum',
    handler: ({ payload }) => ({ sum: payload.reduce((sum, next) => sum + next, 0) }),
  },
  {
    method: 'GET',
    path: '/fail',
    handler: () => {
      throw new Error('on purpose');
    },
  },
]);
process.on('SIGTERM', async () => {
  await server.stop({ timeout: 600_000 });
  process.exit(0);
});
server.start();
