#!/usr/bin/env python3
"""Runs a Node server behind clusterlb for long, and disturbs it: workers are replaced every ten
seconds and crash in between, the folder of what they load is swept, and they open and close servers
for a moment and start threads. Twelve clients with kept connections ask all the time.

    scripts/soak-node.py [--minutes 30] [--every 10] [--binary target/release/clusterlb] [--node node]

No request may fail, and descriptors, memory and listening ports of the primary may not grow. A
client asks again, once, on a new connection, if one that it has used before has been closed, as
browsers do; workers crash only while they have nothing open. Prints a summary, and exits with 1 if
something is wrong.
"""
import argparse
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

CLIENTS = 12
SWEEP_S = 4
# After this part of the time everything has happened that makes things grow at first.
WARM_UP = 0.25
DESCRIPTORS_MORE = 8
MEMORY_MORE = 1.15
MEMORY_MORE_KIB = 8 * 1024

SERVER = """
const { createServer } = require('http');
const { Worker } = require('worker_threads');
let busy = 0;
const sockets = new Set();
const isQuiet = () => busy === 0 && [...sockets].every(({ bytesRead }) => bytesRead > 0);
function crash() {
  if (isQuiet()) process.kill(process.pid, 'SIGKILL');
  setImmediate(crash);
}
const server = createServer((request, response) => {
  busy += 1;
  response.on('close', () => { busy -= 1; });
  const answer = () => response.end(String(process.pid));
  if (request.url === '/slow') setTimeout(answer, 300);
  else answer();
  if (request.url === '/crash') setImmediate(crash);
});
server.on('connection', (socket) => {
  sockets.add(socket);
  socket.on('close', () => sockets.delete(socket));
});
server.listen(0, '127.0.0.1');
const passing = () => {
  const other = require('net').createServer().listen(0, '127.0.0.2', () => other.close());
  other.on('error', ({ code, message }) => {
    // A worker that is told to leave gets no address any more.
    if (code !== 'ECANCELED') process.send({ failed: `a server: ${message}` });
  });
};
const thread = () => {
  const other = new Worker('0', { eval: true });
  other.on('error', ({ message }) => process.send({ failed: `a thread: ${message}` }));
};
setInterval(passing, 250).unref();
setInterval(thread, 500).unref();
"""


class Run:
    """The cluster, and what it says."""

    def __init__(self, options, folder):
        self.folder = folder
        os.mkdir(f"{folder}/run")
        script = f"{folder}/server.js"
        with open(script, "w", encoding="utf-8") as file:
            file.write(SERVER)
        line = [options.binary, "--json", "--workers", "3", "--grace", "20s", "--settle", "1s"]
        environment = {**os.environ, "RUNTIME_DIRECTORY": f"{folder}/run"}
        self.process = subprocess.Popen(
            [*line, "--", options.node, script], stdout=subprocess.PIPE, env=environment, text=True)
        self.events = {}
        self.failures = []
        self.last = {}
        self.changed = threading.Condition()
        self.address = None
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            event = json.loads(line)
            name = event["event"]
            with self.changed:
                self.events[name] = self.events.get(name, 0) + 1
                self.last[name] = event
                # The first one; the others are open for a moment.
                if name == "listening" and self.address is None:
                    self.address = event["address"]
                if name == "message" and "failed" in event["message"]:
                    self.failures.append(event["message"]["failed"])
                if name == "note" and "replacing stopped" in event["text"]:
                    self.failures.append(event["text"])
                self.changed.notify_all()

    def wait_for(self, name, before, limit_s=90):
        with self.changed:
            return self.changed.wait_for(lambda: self.events.get(name, 0) > before, limit_s)

    def count(self, name):
        with self.changed:
            return self.events.get(name, 0)

    def usage(self):
        """Descriptors, KiB of memory and listening sockets of the primary."""
        place = f"/proc/{self.process.pid}"
        links = []
        for name in os.listdir(f"{place}/fd"):
            try:
                links.append(os.readlink(f"{place}/fd/{name}"))
            except FileNotFoundError:
                pass
        with open(f"{place}/status", encoding="ascii") as file:
            memory = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        with open(f"{place}/net/tcp", encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
        listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
        return len(links), memory, sum(link in listening for link in links)


def ask(client, path):
    client.request("GET", path)
    response = client.getresponse()
    body = response.read()
    if response.status != 200:
        raise http.client.HTTPException(f"status {response.status}")
    return body


def keep_asking(run, number, until, counts):
    """One client. It sleeps a little, so that several connections are idle at any time."""
    client, fresh, asked = None, True, 0
    while time.monotonic() < until:
        asked += 1
        path = "/slow" if asked % 50 == 0 else "/"
        for attempt in range(2):
            if client is None:
                client, fresh = http.client.HTTPConnection(run.address, timeout=30), True
            try:
                ask(client, path)
                fresh = client.sock is None
                counts["answered"] += 1
                break
            except (OSError, http.client.HTTPException) as error:
                client.close()
                client = None
                if fresh or attempt == 1:
                    run.failures.append(f"client {number}: {error!r}")
                    break
                counts["asked again"] += 1
        time.sleep(0.005 * (1 + number % 4))
    if client is not None:
        client.close()


def disturb(run, until, every_s, counts, samples):
    begun = time.monotonic()
    next_reload, next_crash, next_sweep = begun, begun + every_s / 2, begun
    while time.monotonic() < until:
        now = time.monotonic()
        if now >= next_sweep:
            shutil.rmtree(f"{run.folder}/run/clusterlb", ignore_errors=True)
            next_sweep = now + SWEEP_S
        if now >= next_crash:
            client = http.client.HTTPConnection(run.address, timeout=30)
            ask(client, "/crash")
            client.close()
            counts["crashes"] += 1
            next_crash = now + every_s
        if now >= next_reload:
            before = run.count("reloaded")
            run.process.send_signal(signal.SIGHUP)
            if not run.wait_for("reloaded", before):
                run.failures.append("workers were not replaced in time")
            samples.append((time.monotonic() - begun, *run.usage()))
            next_reload = now + every_s
        time.sleep(0.05)


def growth(samples, length_s):
    """What has grown between the first and the last third of the time after the warm-up."""
    later = [sample[1:] for sample in samples if sample[0] > length_s * WARM_UP]
    third = max(1, len(later) // 3)
    if len(later) < 2:
        return [], "too few samples"
    first = [statistics.median(values) for values in zip(*later[:third])]
    last = [statistics.median(values) for values in zip(*later[-third:])]
    wrong = []
    if last[0] > first[0] + DESCRIPTORS_MORE:
        wrong.append("descriptors grow")
    if last[1] > first[1] * MEMORY_MORE + MEMORY_MORE_KIB:
        wrong.append("memory grows")
    if last[2] > first[2] + 2:
        wrong.append("listening ports grow")
    names = ("descriptors", "KiB", "listening")
    text = ", ".join(f"{name} {a:.0f} to {b:.0f}" for name, a, b in zip(names, first, last))
    return wrong, text


def soak(options, folder):
    run = Run(options, folder)
    try:
        if not run.wait_for("listening", 0):
            return ["it does not serve"]
        length_s = options.minutes * 60
        until = time.monotonic() + length_s
        counts, samples = {"answered": 0, "asked again": 0, "crashes": 0}, []
        clients = [threading.Thread(target=keep_asking, args=(run, number, until, counts))
                   for number in range(CLIENTS)]
        for client in clients:
            client.start()
        disturb(run, until, options.every, counts, samples)
        for client in clients:
            client.join()
        run.process.terminate()
        code = run.process.wait(60)
    finally:
        run.process.kill()
        run.process.wait()
        run.reader.join()
    wrong, text = growth(samples, length_s)
    wrong += run.failures[:20]
    if code != 0:
        wrong.append(f"it ended with {code}")
    summary = run.last.get("summary", {})
    # The kept connections of workers that crash, and the one that made them.
    expected = counts["asked again"] + counts["crashes"]
    dropped, aborted = summary.get("dropped"), summary.get("aborted")
    if dropped != 0 or aborted > expected:
        wrong.append(f"{dropped} connections were dropped, {aborted} cut")
    print(f"{counts['answered']} requests answered, {counts['asked again']} of them asked again on "
          f"a new connection, {len(run.failures)} failures")
    print(f"{run.count('reloaded')} times replaced, {run.count('exit')} workers ended, "
          f"{counts['crashes']} of them crashed; {text}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=10, help="seconds between replacements")
    parser.add_argument("--binary", default="target/release/clusterlb")
    parser.add_argument("--node", default="node")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = soak(options, folder)
    for one in wrong:
        print(f"wrong: {one}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
