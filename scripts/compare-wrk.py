#!/usr/bin/env python3
"""What a connection costs beside nginx, as a newcomer measures it: with wrk, and with the
generator of this project.

    scripts/compare-wrk.py [--rounds N] [--seconds S] [--clusterlb PATH] [--workers 2,4,8]
                           [--servers NAMES] [--loads short,kept] [--generators wrk,load,rate]
                           [--rate N]

For each placement (shared: nothing is pinned from outside; split: the server has one CPU and the
generator another), number of workers, load (short: a connection for each request; kept) and
generator: requests a second, the 99th percentile and the CPU of the server per request
(/proc/PID/task/*/schedstat of all its processes), of clusterlb with its defaults, clusterlb with
--pin over the CPUs it may use, and nginx; --servers names others of the table SERVERS, nginx
always being one of them. The servers take turns, each round in another order. A figure is the
median of the rounds; behind a ratio to nginx, which is the median of the rounds' ratios, stand the
smallest and the largest.

wrk and load go as fast as the server lets them; a server that is faster than they are waits more
often, and each wait costs it. The generator rate starts --rate requests a second, the same for each
server.

Five rounds take about ten minutes. It needs wrk, nginx and two CPUs; everything runs on the
loopback. scripts/compare-tail.sh has the tables of the tail.
"""

import argparse
import glob
import itertools
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

CONNECTIONS = 64
START_WITHIN_S = 10
# What is added to the command line of clusterlb; nginx's listener for the others.
SERVERS = {
    "default": [],
    "pinned": ["--pin", "all"],
    "at-once": ["--defer-accept", "off"],
    "epoll": ["--engine", "epoll"],
    "kernel": ["--dispatch", "kernel"],
    "reuseport": ["--policy", "none", "--accept", "reuseport"],
    "nginx": "",
    "nginx-deferred": "deferred",
}
NGINX = """daemon off; worker_processes {workers}; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port} backlog=4096 {option};
    location / {{ default_type text/plain; return 200 "hello world\\n"; }}
  }}
}}
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1, help="of each measurement")
    parser.add_argument("--clusterlb", default="target/release/clusterlb")
    parser.add_argument("--workers", default="2,4,8")
    parser.add_argument("--servers", default="default,pinned,nginx")
    parser.add_argument("--loads", default="short,kept")
    parser.add_argument("--generators", default="wrk,load")
    parser.add_argument("--rate", type=int, default=12000, help="of the generator rate")
    options = parser.parse_args()
    options.servers = options.servers.split(",")
    options.loads = options.loads.split(",")
    unknown = set(options.servers) - set(SERVERS)
    if unknown or "nginx" not in options.servers:
        parser.error(f"--servers: nginx and some of {', '.join(SERVERS)}")
    return options


def processes(pid):
    """A process and all its descendants."""
    found = [pid]
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        try:
            with open(path) as file:
                children = file.read().split()
        except OSError:
            continue
        for child in children:
            found += processes(int(child))
    return found


def cpu_ns(pid):
    """What the scheduler has counted for a server so far."""
    total = 0
    for process in processes(pid):
        for path in glob.glob(f"/proc/{process}/task/*/schedstat"):
            try:
                with open(path) as file:
                    total += int(file.read().split()[0])
            except OSError:
                continue
    return total


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server: on these CPUs alone, or where the kernel puts it."""

    def __init__(self, kind, workers, clusterlb, cpus):
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        command = ["taskset", "-c", cpus] if cpus else []
        if kind.startswith("nginx"):
            path = os.path.join(self.folder.name, "nginx.conf")
            with open(path, "w") as file:
                file.write(NGINX.format(workers=workers, folder=self.folder.name, port=self.port,
                                        option=SERVERS[kind]))
            command += ["nginx", "-p", self.folder.name, "-e", "stderr", "-c", path]
        else:
            command += [clusterlb, "--workers", str(workers)]
            command += ["--listen", f"127.0.0.1:{self.port}"]
            command += [cpus or all_cpus() if word == "all" else word for word in SERVERS[kind]]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        self.await_start(" ".join(command))

    def await_start(self, command):
        until = time.monotonic() + START_WITHIN_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                # For the rest of its workers.
                time.sleep(0.4)
                return
            except OSError:
                time.sleep(0.02)
        self.end()
        sys.exit(f"it does not serve: {command}")

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        self.folder.cleanup()


def all_cpus():
    return ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))


def in_us(text):
    """wrk's latencies: 12.3us, 1.2ms, 3.4s."""
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def by_wrk(port, load, seconds):
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    words += ["-H", "Connection: close"] if load == "short" else []
    return words + [f"http://127.0.0.1:{port}/"], lambda text: (
        int(re.search(r"(\d+) requests in", text).group(1)),
        float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1)),
        in_us(re.search(r"99%\s+(\S+)", text).group(1)),
    )


def by_load(clusterlb, rate=None):
    def words(port, load, seconds):
        words = [clusterlb, "load", "--json", "--quiet", "--pin", "none"]
        how = ["--rate", str(rate), "--connections-max"] if rate else ["--connections"]
        words += how + [str(CONNECTIONS), "--duration", f"{seconds}s"]
        words += ["--requests-per-connection", "unlimited"] if load == "kept" else []

        def read(text):
            report = json.loads(text)
            rate = report["rates"]["completed_per_s"]
            return report["totals"]["completed"], rate, report["latency"]["response"]["p99_us"]

        return words + [f"127.0.0.1:{port}"], read

    return words


def measure(server, generator, load, seconds, cpus):
    """Rate, 99th percentile in us, CPU of the server per request in us."""
    words, read = generator(server.port, load, seconds)
    before = cpu_ns(server.process.pid)
    pinned = ["taskset", "-c", cpus] if cpus else []
    done = subprocess.run(pinned + words, capture_output=True, text=True)
    used = cpu_ns(server.process.pid) - before
    try:
        completed, rate, p99_us = read(done.stdout)
    except (AttributeError, ValueError, KeyError):
        sys.exit(f"{words[0]} gave no figures: {done.stderr or done.stdout}")
    return rate, p99_us, used / 1e3 / max(completed, 1)


def one_round(options, generators, results):
    first, last = [str(cpu) for cpu in (min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)))]
    placements = {"shared": (None, None), "split": (first, last)}
    counts = [int(count) for count in options.workers.split(",")]
    for placement, workers in itertools.product(placements, counts):
        server_cpus, load_cpus = placements[placement]
        for kind in random.sample(options.servers, len(options.servers)):
            server = Server(kind, workers, options.clusterlb, server_cpus)
            try:
                for load, generator in itertools.product(options.loads, generators):
                    found = measure(
                        server, generators[generator], load, options.seconds, load_cpus)
                    key = (placement, workers, load, generator)
                    results.setdefault(key, {}).setdefault(kind, []).append(found)
            finally:
                server.end()


def ratio(mine, theirs):
    ratios = [a / b for a, b in zip(mine, theirs) if b]
    middle = statistics.median(ratios)
    return f"{middle:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def table(results, kinds):
    print("| placement, workers, load, generator | server | rate | p99 | CPU | "
          "rate over nginx | p99 over nginx | CPU over nginx |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for key, servers in results.items():
        theirs = list(zip(*servers["nginx"]))
        for kind in kinds:
            mine = list(zip(*servers[kind]))
            rate, p99_us, cpu_us = [statistics.median(values) for values in mine]
            cells = [", ".join(map(str, key)), kind]
            cells += [f"{rate:.0f}/s", f"{p99_us / 1e3:.2f} ms", f"{cpu_us:.1f} µs"]
            pairs = zip(mine, theirs)
            cells += ["" if kind == "nginx" else ratio(a, b) for a, b in pairs]
            print("| " + " | ".join(cells) + " |")


def main():
    options = arguments()
    generators = {
        "wrk": by_wrk,
        "load": by_load(options.clusterlb),
        "rate": by_load(options.clusterlb, options.rate),
    }
    generators = {name: generators[name] for name in options.generators.split(",")}
    results = {}
    print(f"load average {os.getloadavg()[0]:.2f}, CPUs {all_cpus()}, rounds {options.rounds}")
    for number in range(options.rounds):
        begun = time.monotonic()
        one_round(options, generators, results)
        took_s = time.monotonic() - begun
        print(f"round {number + 1}: {took_s:.0f} s", file=sys.stderr, flush=True)
    table(results, options.servers)


if __name__ == "__main__":
    main()
