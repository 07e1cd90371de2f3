#!/usr/bin/env python3
"""Tries a Node program behind clusterlb: four clients ask while its workers are replaced twice, then
the idle service is stopped.

    scripts/try-node.py [--path /] [--binary target/release/clusterlb] -- node server.js

Prints how many requests were answered and which failed, and how long the stop took. Exits with 1 if
a request failed or a worker had to be killed. Three clients keep their connections, as browsers do,
and one does not.
"""
import argparse
import http.client
import json
import signal
import subprocess
import sys
import threading
import time

LIMIT_S = 120
STEADY_S = 1


class Run:
    """The cluster, and what it says."""

    def __init__(self, options):
        line = [options.binary, "--json", "--workers", "2", "--grace", "60s", "--", *options.program]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        self.events = []
        self.ended = False
        self.changed = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                with self.changed:
                    self.events.append(event)
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def named(self, name):
        return [event for event in self.events if event["event"] == name]

    def wait_for(self, name, count=1):
        with self.changed:
            self.changed.wait_for(lambda: self.ended or len(self.named(name)) >= count, LIMIT_S)
            if len(self.named(name)) < count:
                sys.exit(f"in vain: waited for {name}")
            return self.named(name)[count - 1]


def keep_asking(run, options, keeps, over, answered, failures):
    address, client = run.named("listening")[0]["address"], None
    while not over.is_set():
        if client is None:
            client = http.client.HTTPConnection(address, timeout=30)
        try:
            client.request("GET", options.path, headers={} if keeps else {"Connection": "close"})
            response = client.getresponse()
            response.read()
            if response.status != 200:
                raise http.client.HTTPException(f"status {response.status}")
            answered.append(1)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{'kept' if keeps else 'new'}: {error!r}")
            client.close()
            client = None
        if client is not None and client.sock is None:
            client = None
        time.sleep(0.003)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--path", default="/")
    parser.add_argument("--binary", default="target/release/clusterlb")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    run = Run(options)
    try:
        run.wait_for("listening")
        over, answered, failures = threading.Event(), [], []
        clients = [threading.Thread(target=keep_asking,
                                    args=(run, options, keeps, over, answered, failures))
                   for keeps in (True, True, True, False)]
        for client in clients:
            client.start()
        for count in (1, 2):
            time.sleep(STEADY_S)
            run.process.send_signal(signal.SIGHUP)
            run.wait_for("reloaded", count)
        time.sleep(STEADY_S)
        over.set()
        for client in clients:
            client.join()
        time.sleep(STEADY_S)
        begun = time.monotonic()
        run.process.terminate()
        code = run.process.wait(LIMIT_S)
        took = time.monotonic() - begun
    finally:
        run.process.kill()
        run.process.wait()
    killed = len(run.named("kill"))
    print(f"{len(answered)} requests answered, {len(failures)} failed")
    for failure in failures[:10]:
        print(f"  {failure}")
    print(f"stopped in {took:.2f} s with code {code}, {killed} workers killed")
    sys.exit(1 if failures or killed or code != 0 or not answered else 0)


if __name__ == "__main__":
    main()
