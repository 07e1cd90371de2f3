// A broker of moleculer, which listens for signals itself and stops its services one after the
// other; one of them serves HTTP.
'use strict';

const { appendFileSync } = require('fs');
const { createServer } = require('http');
const { ServiceBroker } = require('moleculer');

const broker = new ServiceBroker({ logger: false });
broker.createService({
  name: 'web',
  started() {
    this.server = createServer((request, response) => response.end(String(process.pid)));
    return new Promise((resolve) => this.server.listen(0, '127.0.0.1', resolve));
  },
  async stopped() {
    appendFileSync(process.env.TEST_NOTES, 'service stopped\n');
    await new Promise((resolve) => this.server.close(resolve));
  },
});
broker.start();
