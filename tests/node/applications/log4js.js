// A server that logs with log4js as its documentation shows for node:cluster: the primary writes the
// file, and workers send it their lines.
'use strict';

const cluster = require('cluster');
const log4js = require('log4js');

const layout = { type: 'pattern', pattern: '%z %m' };
log4js.configure({
  appenders: { file: { type: 'file', filename: process.env.TEST_NOTES, layout } },
  categories: { default: { appenders: ['file'], level: 'info' } },
});
const log = log4js.getLogger();

if (cluster.isPrimary) {
  for (let count = 0; count < 2; count += 1) cluster.fork();
  log.info('primary');
} else {
  const server = require('http').createServer((request, response) => {
    log.info(request.url);
    response.end(String(process.pid));
  });
  server.listen(0, '127.0.0.1');
  process.on('SIGTERM', () => log.info('leaves'));
}
