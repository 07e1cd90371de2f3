#!/usr/bin/env python3
"""What scraping costs: CPU time of the primary and its workers per connection, with /metrics read ten
times a second and without, in rounds that take turns.

    scripts/compare-scraping.py [--rounds 8] [--seconds 10] [--rate 5000] [--workers 2]
        [--scrapes 10] [CLUSTERLB]

CLUSTERLB is the command, target/release/clusterlb if none is named. One run serves all rounds. Each
round loads it twice at a constant rate of short connections, once with scraping, and begins with
the other one in every second round. Prints a row per round and the medians; a ratio of 1.00 is no
difference. The scrapers are threads of this script, so only the server's part of scraping counts.
"""

import argparse
import glob
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("clusterlb", nargs="?", default="target/release/clusterlb")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scrapes", type=float, default=10, help="a second")
    return parser.parse_args()


class Run:
    """A run with an admin address for scrapers."""

    def __init__(self, options):
        words = ["--workers", str(options.workers), "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [options.clusterlb, *words, "--admin", "127.0.0.1:0", "--json"],
            stdout=subprocess.PIPE, text=True)
        self.address = self.admin = None
        while self.address is None or self.admin is None:
            line = self.process.stdout.readline()
            if not line:
                sys.exit(f"{options.clusterlb} does not run: exit code {self.process.wait()}")
            event = json.loads(line)
            if event["event"] == "listening":
                self.address = event["address"]
            if event["event"] == "admin":
                self.admin = event["address"]
        # Nothing may wait for a reader.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def family(self):
        family = [self.process.pid]
        for path in glob.glob(f"/proc/{self.process.pid}/task/*/children"):
            with open(path) as children:
                family += map(int, children.read().split())
        return family

    def cpu_seconds(self):
        """Of the primary, and of all its workers."""
        each = [ticks(pid) / TICKS for pid in self.family()]
        return each[0], sum(each[1:])

    def end(self):
        self.process.terminate()
        if self.process.wait() != 0:
            sys.exit(f"the run ended with {self.process.returncode}")


def ticks(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


class Scraper:
    """Reads /metrics at a constant rate, as long as it is in use."""

    def __init__(self, admin, per_second):
        self.done = threading.Event()
        self.scraped = 0
        self.thread = threading.Thread(target=self.scrape, args=(admin, per_second))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def scrape(self, admin, per_second):
        begin = time.monotonic()
        while not self.done.wait(max(0, begin + self.scraped / per_second - time.monotonic())):
            connection = http.client.HTTPConnection(admin, timeout=10)
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            if answer.status != 200 or b"clusterlb_ready 1" not in answer.read():
                sys.exit("/metrics is not answered")
            connection.close()
            self.scraped += 1


def load(options, run):
    """CPU time per connection, in microseconds: of all, and of the primary."""
    before = run.cpu_seconds()
    words = ["--rate", str(options.rate), "--duration", f"{options.seconds}s", "--warmup", "0s"]
    command = [options.clusterlb, "load", *words, "--json", f"http://{run.address}/"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if output.returncode != 0:
        sys.exit(f"the load ended with {output.returncode}: {output.stdout}")
    totals = json.loads(output.stdout)["totals"]
    if totals["failed"] or totals["unfinished"]:
        sys.exit(f"requests failed: {totals}")
    primary, workers = (now - then for now, then in zip(run.cpu_seconds(), before))
    connections = totals["completed"]
    return (primary + workers) * 1e6 / connections, primary * 1e6 / connections


def main():
    options = arguments()
    run = Run(options)
    try:
        compare(options, run)
    finally:
        run.end()


def compare(options, run):
    load(options, run)
    rows = []
    print("round   without     with   ratio   primary: without   with   ratio   a scrape")
    for number in range(options.rounds):
        found = {}
        for scraped in [(False, True), (True, False)][number % 2]:
            if scraped:
                with Scraper(run.admin, options.scrapes) as scraper:
                    found[True] = load(options, run)
                count = scraper.scraped
            else:
                found[False] = load(options, run)
        (without, primary_without), (with_, primary_with) = found[False], found[True]
        connections = options.rate * options.seconds
        scrape_ms = (primary_with - primary_without) * connections / count / 1e3
        rows.append((without, with_, with_ / without, primary_without, primary_with,
                     primary_with / primary_without, scrape_ms))
        show(number + 1, rows[-1])
    show("median", [statistics.median(column) for column in zip(*rows)])
    ratios = [row[2] for row in rows]
    print(f"ratio of all: {statistics.median(ratios):.3f} "
          f"[{min(ratios):.3f}, {max(ratios):.3f}] in {options.rounds} rounds of "
          f"{options.seconds:g} s at {options.rate}/s with {options.scrapes:g} scrapes/s; "
          f"CPU time in µs per connection")


def show(name, row):
    without, with_, ratio, primary_without, primary_with, primary_ratio, scrape_ms = row
    print(f"{name!s:>6} {without:8.2f} {with_:8.2f} {ratio:7.3f} {primary_without:18.2f} "
          f"{primary_with:6.2f} {primary_ratio:7.3f} {scrape_ms:7.2f} ms", flush=True)


if __name__ == "__main__":
    main()
