// What a file of protocol buffers would say, with texts as messages.
'use strict';

const texts = {
  requestSerialize: (text) => Buffer.from(text),
  requestDeserialize: String,
  responseSerialize: (text) => Buffer.from(text),
  responseDeserialize: String,
};

exports.definition = {
  hello: { path: '/test.Test/Hello', requestStream: false, responseStream: false, ...texts },
  count: { path: '/test.Test/Count', requestStream: false, responseStream: true, ...texts },
};
