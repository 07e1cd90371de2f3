#!/usr/bin/env python3
"""What `--dispatch kernel` promises and a busy machine does not change: counts, not times.

Per form (exact as root or with CAP_BPF, unprivileged through setpriv):

* how evenly clients are spread, one after another and 64 at once;
* how often the primary wakes up, idle, with connections that stay open, and under load;
* what a worker that gets SIGSTOP still receives, and whether everything is answered;
* how many connections are refused or reset while the kernel's choice changes all the time, because
  workers are stopped and continued in turn, and while SIGHUP comes every 2 seconds.

    scripts/try-dispatch.py target/release/clusterlb --connections 1000000

Needs wrk. Everything runs on the loopback.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
# Where workers share a CPU, each of them takes many connections whenever it runs. In a few seconds
# chance decides which of them run more often.
BALANCE_S = 20
WITHOUT_CAPABILITIES = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


class Cluster:
    """A run with its events."""

    def __init__(self, command, form, workers, *options):
        front = WITHOUT_CAPABILITIES if form == "unprivileged" else []
        self.process = subprocess.Popen(
            [*front, command, "--json", "--listen", "127.0.0.1:0", "--dispatch", "kernel",
             "--workers", str(workers), *options],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.events = []
        self.thread = threading.Thread(target=self.read)
        self.thread.start()
        self.wait(lambda: len(self.named("online")) >= workers and self.named("listening"))
        address = self.named("listening")[0]
        self.form = address["dispatch_form"]
        host, port = address["address"].rsplit(":", 1)
        self.address = (host, int(port))

    def read(self):
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def named(self, name):
        return [event for event in list(self.events) if event.get("event") == name]

    def wait(self, condition):
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, "it does not happen"
            time.sleep(0.01)

    def workers(self):
        ended = {event["pid"] for event in self.named("exit")}
        return [event["pid"] for event in self.named("online") if event["pid"] not in ended]

    def wake_ups(self):
        tasks = f"/proc/{self.process.pid}/task"
        count = 0
        for task in os.listdir(tasks):
            with open(f"{tasks}/{task}/status", encoding="ascii") as status:
                count += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read(), re.M)[1])
        return count

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.thread.join()
        return self.named("summary")[-1]

    def connect(self):
        client = socket.create_connection(self.address, 30)
        client.sendall(REQUEST)
        return client

    def ask(self):
        with self.connect() as client:
            return answered(client)


def suspend(pid):
    """Stops a process and waits until it is: until then its accept goes on."""
    os.kill(pid, signal.SIGSTOP)
    while True:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            if stat.read().rsplit(")", 1)[1].split()[0] == "T":
                return
        time.sleep(0.001)


def answered(client):
    try:
        return b"200 OK" in client.recv(4096)
    except OSError:
        return False


def wrk(cluster, clients, seconds):
    """Requests answered and connections that failed."""
    host, port = cluster.address
    text = subprocess.run(
        ["wrk", "-t1", f"-c{clients}", f"-d{seconds}", "-H", "Connection: close",
         f"http://{host}:{port}/"], capture_output=True, text=True, check=True).stdout
    failed = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return (int(re.search(r"(\d+) requests in", text)[1]),
            sum(map(int, failed.groups())) if failed else 0)


def shares(summary):
    return [worker["assigned"] - worker["returned"] for worker in summary["workers"]]


def balance(command, form):
    cluster = Cluster(command, form, 8)
    assert all(cluster.ask() for _ in range(800))
    one = shares(cluster.end())
    cluster = Cluster(command, form, 8)
    wrk(cluster, 64, BALANCE_S)
    many = sorted(shares(cluster.end()))
    print(f"{form}: 800 clients one after another: {min(one)} to {max(one)} a worker; 64 at once "
          f"for {BALANCE_S} s: top two of eight {100 * sum(many[-2:]) / sum(many):.1f} %")


def wake_ups(command, form):
    cluster = Cluster(command, form, 2)
    time.sleep(1)
    found = []

    def during(what, work):
        before, begin = cluster.wake_ups(), time.monotonic()
        work()
        rate = (cluster.wake_ups() - before) / (time.monotonic() - begin)
        found.append(f"{what} {rate:.0f}")

    during("idle", lambda: time.sleep(3))
    clients = [socket.create_connection(cluster.address) for _ in range(50)]
    time.sleep(2)
    during("with 50 that stay", lambda: time.sleep(3))
    result = []
    during("under load", lambda: result.append(wrk(cluster, 64, 3)))
    rate = result[0][0] / 3
    del clients
    cluster.end()
    print(f"{form}: wake-ups of the primary a second: {', '.join(found)}, at {rate:.0f} "
          "connections a second")


def stopped(command, form):
    cluster = Cluster(command, form, 4, "--hang-after", "100ms")
    assert all(cluster.ask() for _ in range(20))
    victim = cluster.workers()[0]
    suspend(victim)
    begin = time.monotonic()
    clients = [cluster.connect() for _ in range(200)]
    ok = sum(answered(client) for client in clients)
    took_ms = 1000 * (time.monotonic() - begin)
    later = sum(cluster.ask() for _ in range(200))
    os.kill(victim, signal.SIGCONT)
    time.sleep(0.5)
    summary = cluster.end()
    print(f"{form}: a worker of four is stopped: {ok} of 200 that come at once are answered within "
          f"{took_ms:.0f} ms, {later} of 200 that come later; {summary['stolen']} were stolen, "
          f"{summary['dropped']} lost, {summary['aborted']} cut")


def swaps(command, form, connections):
    # Under `least` the random form's weights follow the loads.
    cluster = Cluster(command, form, 8, "--hang-after", "100ms", "--policy", "least")
    goes_on = True

    # Each thread has workers of its own: one alone changes the choice 70 times a second, and the
    # primary changes it 200 times a second at most.
    def stop_in_turn(workers):
        turn = 0
        while goes_on:
            worker = workers[turn % len(workers)]
            os.kill(worker, signal.SIGSTOP)
            time.sleep(0.012)
            os.kill(worker, signal.SIGCONT)
            time.sleep(0.002)
            turn += 1

    workers = cluster.workers()
    threads = [threading.Thread(target=stop_in_turn, args=(workers[place::4],))
               for place in range(4)]
    for thread in threads:
        thread.start()
    begin = time.monotonic()
    done = failed = 0
    while done < connections:
        more, wrong = wrk(cluster, 64, 10)
        done, failed = done + more, failed + wrong
    seconds = time.monotonic() - begin
    goes_on = False
    for thread in threads:
        thread.join()
    summary = cluster.end()
    changes = sum(summary["steered"].values())
    print(f"{form}: {done} connections under {changes / seconds:.0f} changes a second: {failed} "
          f"refused or reset, {summary['dropped']} lost, {summary['aborted']} cut")


def reloads(command, form, connections):
    cluster = Cluster(command, form, 4)
    goes_on = True

    def reload():
        while goes_on:
            cluster.process.send_signal(signal.SIGHUP)
            time.sleep(2)

    thread = threading.Thread(target=reload)
    thread.start()
    done = failed = 0
    while done < connections:
        more, wrong = wrk(cluster, 64, 10)
        done, failed = done + more, failed + wrong
    goes_on = False
    thread.join()
    cluster.wait(lambda: len(cluster.workers()) == 4)
    replaced = len(cluster.named("reloaded"))
    summary = cluster.end()
    print(f"{form}: {done} connections while all workers were replaced {replaced} times: {failed} "
          f"refused or reset, {summary['dropped']} lost, {summary['aborted']} cut")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("clusterlb", help="the program, a release build")
    parser.add_argument("--connections", type=int, default=100_000,
                        help="under changes, and under reloads")
    parser.add_argument("--only", default="", help="the name of one part")
    parser.add_argument("--forms", default="exact,unprivileged")
    options = parser.parse_args()
    forms = options.forms.split(",")
    if shutil.which("setpriv") is None:
        forms = [form for form in forms if form != "unprivileged"]
    for part in (balance, wake_ups, stopped, swaps, reloads):
        for form in forms:
            if options.only in ("", part.__name__):
                more = (options.connections,) if part in (swaps, reloads) else ()
                part(options.clusterlb, form, *more)


if __name__ == "__main__":
    main()
