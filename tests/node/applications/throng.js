// A worker as throng starts it, which tidies up at SIGTERM. In workers of others throng calls it, too,
// and in a companion the primary's part.
'use strict';

const { appendFileSync } = require('fs');
const { createServer } = require('http');
const throng = require('throng');

const master = () => appendFileSync(process.env.TEST_NOTES, 'primary\n');

function worker() {
  const server = createServer((request, response) => response.end(String(process.pid)));
  server.listen(0, '127.0.0.1');
  setInterval(() => {}, 1000);
  process.once('SIGTERM', () => {
    appendFileSync(process.env.TEST_NOTES, 'shut down by SIGTERM\n');
    server.close(() => process.exit());
  });
}

throng({ master, worker, count: 2 });
