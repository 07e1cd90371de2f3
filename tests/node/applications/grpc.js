// A service of gRPC: one call with one answer, and one with a stream of answers.
'use strict';

const { Server, ServerCredentials } = require('@grpc/grpc-js');
const { definition } = require('./grpc-definition');

const server = new Server();
server.addService(definition, {
  hello: (call, done) => done(null, `hello ${call.request} of ${process.pid}`),
  count: async (call) => {
    for (let number = 0; number < 5; number += 1) {
      call.write(String(number));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    call.end();
  },
});
server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
});
