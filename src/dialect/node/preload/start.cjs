// The entry point: reads the primary's parameters from the environment, and connects the parts.

function parametersOf(env) {
  const told = /^(\d+),(\d+),(\d+),(\d+),(-?\d+),(.*)$/s.exec(env.CLUSTERLB_PRELOAD);
  if (told === null) return undefined;
  delete env.CLUSTERLB_PRELOAD;
  const [page, bell, inbox, beatMs, link] = told.slice(1, 6).map(Number);
  removeOption(env, told[6]);
  redirect(link);
  return { page, bell, inbox, beatMs };
}

// The channel of a companion.
function channelOf(env) {
  const told = /^companion,(\d+),(-?\d+),(.*)$/s.exec(env.CLUSTERLB_PRELOAD);
  if (told === null) return undefined;
  delete env.CLUSTERLB_PRELOAD;
  removeOption(env, told[3]);
  redirect(Number(told[2]));
  return Number(told[1]);
}

function removeOption(env, option) {
  const options = (env.NODE_OPTIONS || '').replace(option, '').trim();
  if (options === '') delete env.NODE_OPTIONS;
  else env.NODE_OPTIONS = options;
}

// Threads load what this process has been told to load, which is the link: from now on it leads
// them to an empty script, whatever happens to the file.
function redirect(link) {
  if (link < 0) return;
  const { openSync, closeSync } = require('fs');
  const empty = '/dev/null';
  const lower = [];
  safely(() => {
    // The lowest free number is used first, so the one that is closed must be the only lower one.
    do lower.push(openSync(empty));
    while (lower[lower.length - 1] < link);
    closeSync(link);
    openSync(empty);
  });
  lower.forEach((number) => closeSync(number));
}

function openInbox(inbox, page, tell) {
  try {
    return new Inbox(inbox, page, tell);
  } catch {
    // All required internals exist in every Node version tested. Where one is missing, connections
    // arrive on Node's channel.
    return undefined;
  }
}

function start(parameters, cluster) {
  // The original function, because the program may replace it.
  const { send } = process;
  const page = new Page(parameters);
  const tell = (words, handle, done = () => {}) => {
    const told = { cmd: 'NODE_CLUSTERLB', received: page.received, ...words };
    Reflect.apply(send, process, [told, handle, undefined, done]);
  };
  const proxied = new Proxied(page);
  const servers = new Servers(proxied);
  const kept = new Kept(servers);
  const inbox = openInbox(parameters.inbox, page, tell);
  const leaving = new Leaving({ cluster, page, kept, servers, inbox, tell });
  const { signals } = leaving;
  page.onMove = () => {
    if (!signals.started) safely(() => signals.guard());
  };
  announceEnd(cluster.worker, leaving, send);
  listen(page, leaving);
  join({ cluster, servers, kept, inbox, marks: page });
  page.publish();
}

// Node says that a worker leaves on its own accord only after its servers have closed, which takes
// as long as open connections do. Until then the primary would take them for servers that are not
// needed any more, and close their addresses. While the service stops, the primary's own message is
// what closes the servers, and it sends none to a worker that leaves already.
function announceEnd(worker, leaving, send) {
  const { disconnect } = worker;
  const announcing = function (...words) {
    if (!this.exitedAfterDisconnect && leaving.stage !== STOPPING && process.connected) {
      const told = { cmd: 'NODE_CLUSTER', act: 'exitedAfterDisconnect' };
      Reflect.apply(send, process, [told, undefined, undefined, () => {}]);
    }
    return Reflect.apply(disconnect, this, words);
  };
  const hidden = { value: announcing, writable: true, configurable: true };
  Object.defineProperty(worker, 'disconnect', hidden);
}

function listen(page, leaving) {
  // A request on a kept connection has no other effect than a turn of the loop.
  const requests = require('diagnostics_channel').channel('http.server.request.start');
  requests.subscribe(() => page.move());
  // Before Node handles it, because a connection that it refuses is closed at once.
  process.prependListener('internalMessage', (message, handle) => {
    if (message.cmd === 'NODE_CLUSTERLB' && message.act === 'stop') safely(() => leaving.onStop());
    if (message.cmd !== 'NODE_CLUSTER') return;
    // The mark of connections for the server that Node is about to answer.
    page.mark = message.clusterlb;
    page.isProxied = message.clusterlbProxied === true;
    page.isCounted = message.clusterlbCounted === true;
    if (message.act === 'newconn' && handle) page.follow(handle, page.endingsOf());
    else if (message.act === 'disconnect') safely(() => leaving.onDisconnect());
  });
  process.prependListener('disconnect', () => safely(() => leaving.onChannelEnd()));
}

// Called for every server that listens, with the socket that its connections arrive at. Only HTTP/2
// servers have settings.
function join({ cluster, servers, kept, inbox, marks }) {
  const { _getServer: getServer } = cluster;
  cluster._getServer = function (server, query, callback) {
    const isHttp2 = typeof server.updateSettings === 'function';
    if (isHttp2) server.off('session', kept.follow).on('session', kept.follow);
    const answered = (error, socket) => {
      if (!error && socket) {
        if (marks.mark !== undefined) inbox.serve(server, socket, marks.mark);
        servers.add(server, socket);
      }
      const { isProxied, isCounted, mark } = marks;
      const result = callback(error, socket);
      // The server has set what is called for a connection.
      if (!error && socket && isProxied) servers.proxied.join(server, socket);
      if (!error && socket && isCounted) marks.countAccepted(socket, mark);
      return result;
    };
    return Reflect.apply(getServer, this, [server, query, answered]);
  };
}

function main() {
  const channel = channelOf(process.env);
  if (channel !== undefined) return void new Companion(channel, require('cluster'));
  const parameters = parametersOf(process.env);
  if (parameters === undefined) return;
  const cluster = require('cluster');
  // Node makes no worker of a program that it is given as text.
  if (cluster.isWorker && cluster.worker && process.connected) start(parameters, cluster);
}

main();
