// Counters of prom-client in several workers, summed up by a primary that serves them, as in the
// example of its documentation.
'use strict';

const cluster = require('cluster');
const { writeFileSync } = require('fs');
const http = require('http');
const { AggregatorRegistry, Counter } = require('prom-client');

if (cluster.isPrimary) {
  const registry = new AggregatorRegistry();
  const server = http.createServer(async (request, response) => {
    try {
      response.end(await registry.clusterMetrics());
    } catch (error) {
      response.writeHead(500).end(String(error));
    }
  });
  server.listen(0, '127.0.0.1', () => {
    writeFileSync(process.env.TEST_NOTES, `127.0.0.1:${server.address().port}`);
  });
} else {
  // Workers answer the primary's requests for their metrics.
  new AggregatorRegistry();
  const requests = new Counter({ name: 'requests', help: 'requests', labelNames: ['path'] });
  const server = http.createServer((request, response) => {
    requests.inc({ path: request.url });
    response.end(String(process.pid));
  });
  server.listen(0, '127.0.0.1');
}
