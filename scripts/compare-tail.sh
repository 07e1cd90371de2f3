#!/bin/sh
# The tail under requests that block their worker: this program's policies, the kernel's choice,
# nginx, and one ideal queue as it is simulated; the same with slow workers, and with Node's.
#
#     scripts/compare-tail.sh [FOLDER]        the folder is `measurements` if none is given
#
# Leaves a table, a page and rows for other programs for each. BENCH_OPTIONS stands in for the
# lengths: BENCH_OPTIONS='-r 6 -d 300ms --warmup 100ms' scripts/compare-tail.sh tries it out.
# CLUSTERLB names a program that has been built; else it is built here.
#
# Takes about twelve minutes. Everything runs on the loopback. scripts/compare-wrk.py has the tables
# of what a connection costs.
set -eu

cd "$(dirname "$0")/.."
folder=${1:-measurements}
. scripts/measure.sh
lengths=${BENCH_OPTIONS:--r 6 -d 2s --warmup 500ms}

# NAME and the further words for `clusterlb bench`.
bench() {
    name=$1
    shift
    # shellcheck disable=SC2086 # lengths are words
    measure "$name" bench --quiet $lengths "$@"
}

own='-t rr -t least -t fastest -t central -t none:epoll -t none:uring'
# shellcheck disable=SC2086
bench tail -w 8 -s heavy-70 $own --against nginx
bench uneven -w 8 -s uneven -t rr -t least -t fastest -t central -t none:uring
if command -v node >/dev/null 2>&1; then
    bench tail-node -w 8 -s heavy-25 -t none+node -t rr+node -t 'rr+node --hang-after 5ms' \
        -t node:rr
fi

echo "pages and tables are in $folder" >&2
