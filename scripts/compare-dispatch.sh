#!/bin/sh
# What it costs to let the kernel dispatch, beside the primary, workers that share nothing but a
# port, and nginx: CPU for a connection, how even it is, the tail of unequal work.
#
#     scripts/compare-dispatch.sh [FOLDER]    the folder is `measurements` if none is given
#
# BENCH_OPTIONS stands in for the lengths, and CLUSTERLB names a program that has been built; else it
# is built here. As root, or with CAP_BPF, the form is `exact`; `-unprivileged` is without it, where
# setpriv is installed.
#
# Takes some five minutes. Everything runs on the loopback.
set -eu

cd "$(dirname "$0")/.."
folder=${1:-measurements}
. scripts/measure.sh
lengths=${BENCH_OPTIONS:--r 6 -d 1s --warmup 500ms}

# NAME and the further words for `clusterlb bench`.
bench() {
    name=$1
    shift
    # shellcheck disable=SC2086 # lengths are words
    measure "$name" bench --quiet $lengths "$@"
}

kernel='rr --dispatch kernel'
for placement in split shared; do
    for workers in 2 8; do
        under=
        bench "dispatch-$placement-$workers" --placement "$placement" -s capacity \
            -w "$workers" -t none:reuseport -t rr -t "$kernel" --against nginx
        if command -v setpriv >/dev/null 2>&1; then
            under='setpriv --inh-caps=-all --bounding-set=-all'
            bench "dispatch-$placement-$workers-unprivileged" --placement "$placement" \
                -s capacity -w "$workers" -t none:reuseport -t "$kernel"
        fi
    done
done
under=
bench dispatch-tail -s heavy-70 -w 8 -t central -t rr -t "$kernel"
"$CLUSTERLB" imbalance --workers 8 --target rr --target "$kernel" --target none:reuseport \
    >"$folder/dispatch-even.txt" || [ $? -eq 4 ]
cat "$folder/dispatch-even.txt"

echo "tables are in $folder" >&2
