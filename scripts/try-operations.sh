#!/usr/bin/env bash
# Everything that an operator does, under load and within a minute: metrics are scraped ten times a
# second, workers scaled 2, 8, 3, 1, 4, all of them replaced, the policy changed. No request may fail.
#
#   scripts/try-operations.sh [target/release/clusterlb] [connections a second, 5000] [seconds, 60]
set -euo pipefail
binary=${1:-target/release/clusterlb}
rate=${2:-5000}
seconds=${3:-60}
work=$(mktemp -d)
run=
scraper=
load=

clean_up() {
    for process in $load $scraper $run; do kill "$process" 2>"$work/killed" || true; done
    wait
    rm -rf "$work"
}
trap clean_up EXIT

admin=unix:$work/admin
"$binary" --workers 2 --listen 127.0.0.1:0 --admin "$admin" --json >"$work/events" &
run=$!
for _ in $(seq 100); do
    if grep -q '"event":"listening"' "$work/events"; then break; fi
    sleep 0.1
done
address=$(grep -o -m 1 '127\.0\.0\.1:[0-9]*' "$work/events" | head -n 1)

ask() { curl -sS --fail-with-body --unix-socket "$work/admin" "$@"; }
scrape() {
    while :; do
        ask http://admin/metrics >"$work/metrics"
        echo scraped >>"$work/scrapes"
        sleep 0.1
    done
}
scrape &
scraper=$!
"$binary" load --rate "$rate" --duration "${seconds}s" --expect errors=0 \
    "http://$address/" >"$work/load" 2>&1 &
load=$!
begin=$SECONDS
sleep 1

act() { ask -X POST "http://admin/$1" | tr '\n' ' '; }
for workers in 8 3 1 4; do act "scale?workers=$workers"; done
for policy in least sticky rr; do act "policy?policy=$policy"; done
act "policy?overload-factor=1.5&max-inflight=5000&credits=64"
act reload
for id in $(ask http://admin/workers | grep -o '"id":[0-9]*' | cut -d: -f2); do
    act "workers/$id/replace"
done
took=$((SECONDS - begin))
printf '\nall of it took %s s of the %s s of load\n' "$took" "$seconds"
if [ "$took" -ge "$seconds" ]; then echo "the load ended before" >&2; exit 1; fi

if ! wait "$load"; then
    cat "$work/load" >&2
    echo "requests failed" >&2
    exit 1
fi
load=
kill "$scraper"
grep -E '^(rate|starts|response) ' "$work/load"
echo "$(wc -l <"$work/scrapes") scrapes; $(ask http://admin/metrics |
    grep '^clusterlb_connections_dropped_total') and no request failed"
kill -TERM "$run"
wait "$run"
run=
