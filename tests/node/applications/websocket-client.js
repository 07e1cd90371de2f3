// Opens several WebSockets at once, has each echo texts and bytes, and prints who served them.
'use strict';

const WebSocket = require('ws');

const [address, clients] = [process.argv[2], Number(process.argv[3])];
const sent = ['text', 'wörld ☃', 'x'.repeat(70000), Buffer.from([0, 255, 1, 254])];

function one() {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${address}`);
    const heard = [];
    socket.on('error', reject);
    socket.on('open', () => sent.forEach((message) => socket.send(message)));
    socket.on('message', (message, binary) => {
      heard.push(binary ? message : String(message));
      if (heard.length === sent.length + 1) socket.close();
    });
    socket.on('close', () => {
      const [pid, ...echoes] = heard;
      const right = echoes.length === sent.length &&
        echoes.every((echo, place) => Buffer.from(echo).equals(Buffer.from(sent[place])));
      resolve({ pid, right });
    });
  });
}

Promise.all(Array.from({ length: clients }, one)).then((all) => {
  for (const told of all) console.log(JSON.stringify(told));
});
