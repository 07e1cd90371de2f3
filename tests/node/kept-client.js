// Asks without a pause on connections that it keeps, by HTTP/1 over TLS, by HTTP/2 with and without
// TLS, and for several things at once (crowd), until its input ends. Tells all the time how many
// requests were answered, and at last what went wrong.
'use strict';

const https = require('https');
const http2 = require('http2');
const { NGHTTP2_REFUSED_STREAM } = http2.constants;

const [secure, h2, h2c] = process.argv.slice(2);
const rejectUnauthorized = false;
const counts = { https: 0, h2: 0, h2c: 0, crowd: 0 };
const workers = { https: new Set(), h2: new Set(), h2c: new Set(), crowd: new Set() };
const failed = [];
const refused = { h2: 0, h2c: 0, crowd: 0 };
let over = false;

function answered(kind, pid) {
  counts[kind] += 1;
  workers[kind].add(pid);
}

// An answer that says `Connection: close` ends its connection, and the next one opens another.
const agent = new https.Agent({ keepAlive: true, maxSockets: 2 });

function askSecure() {
  const [host, port] = secure.split(':');
  return new Promise((resolve) => {
    const fail = (error) => {
      failed.push(`https: ${error.message}`);
      resolve();
    };
    https.get({ host, port, agent, rejectUnauthorized }, (response) => {
      let text = '';
      response.on('data', (part) => (text += part)).on('error', fail).on('end', () => {
        answered('https', text);
        resolve();
      });
    }).on('error', fail);
  });
}

// Tells whether it was answered; not if it was refused, so that it may be asked for again.
function askOn(session, kind) {
  return new Promise((resolve) => {
    const request = session.request({ ':path': '/' });
    let text = '';
    request.on('data', (part) => (text += part)).on('error', () => {});
    request.on('close', () => {
      const { rstCode } = request;
      if (rstCode === 0 && text !== '') answered(kind, text);
      else if (rstCode === NGHTTP2_REFUSED_STREAM && text === '') refused[kind] += 1;
      else failed.push(`${kind}: an answer of ${text.length} bytes, code ${rstCode}`);
      resolve();
    });
  });
}

const pause = () => new Promise((resolve) => setTimeout(resolve, 1));

// So many requests at once on one session, until it is told to begin nothing more there.
async function keepSession(kind, url, atOnce) {
  while (!over) {
    const session = http2.connect(url, { rejectUnauthorized });
    session.on('error', (error) => failed.push(`${kind} session: ${error.message}`));
    const ask = async () => {
      while (!over && !session.closed && !session.destroyed) {
        await askOn(session, kind);
        await pause();
      }
    };
    await Promise.all(Array.from({ length: atOnce }, ask));
    session.close();
  }
}

async function keepSecure() {
  while (!over) {
    await askSecure();
    await pause();
  }
}

const tell = (word) => console.log(JSON.stringify({ ...word, ...counts }));
const ticking = setInterval(() => tell({}), 20);
process.stdin.resume().on('end', () => (over = true));
Promise.all([
  keepSecure(),
  keepSecure(),
  keepSession('h2', `https://${h2}`, 1),
  keepSession('h2c', `http://${h2c}`, 1),
  keepSession('crowd', `https://${h2}`, 4),
]).then(() => {
  clearInterval(ticking);
  agent.destroy();
  const met = Object.fromEntries(Object.entries(workers).map(([kind, pids]) => [kind, pids.size]));
  tell({ failed, refused, met });
});
