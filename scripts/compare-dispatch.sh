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
if [ -z "${CLUSTERLB:-}" ]; then
    cargo build --release --bin clusterlb
    CLUSTERLB=${CARGO_TARGET_DIR:-target}/release/clusterlb
fi
mkdir -p "$folder"
lengths=${BENCH_OPTIONS:--r 6 -d 1s --warmup 500ms}

# A measurement of which too few trials count for something ends with 4, which is a result; what is
# not installed is left out. The words in front of the program are in `under`.
measure() {
    name=$1
    shift
    code=0
    # shellcheck disable=SC2086 # options are words
    $under "$CLUSTERLB" bench --quiet $lengths "$@" --csv "$folder/$name.csv" \
        >"$folder/$name.txt" || code=$?
    case $code in
    0) ;;
    3) echo "$name: $(cat "$folder/$name.txt") left out" >&2 ;;
    4) echo "$name: too few trials count; $folder/$name.txt says of what and why" >&2 ;;
    *) exit "$code" ;;
    esac
    cat "$folder/$name.txt"
}

kernel='rr --dispatch kernel'
for placement in split shared; do
    for workers in 2 8; do
        under=
        measure "dispatch-$placement-$workers" --placement "$placement" -s capacity \
            -w "$workers" -t none:reuseport -t rr -t "$kernel" --against nginx
        if command -v setpriv >/dev/null 2>&1; then
            under='setpriv --inh-caps=-all --bounding-set=-all'
            measure "dispatch-$placement-$workers-unprivileged" --placement "$placement" \
                -s capacity -w "$workers" -t none:reuseport -t "$kernel"
        fi
    done
done
under=
measure dispatch-tail -s heavy-70 -w 8 -t central -t rr -t "$kernel"
"$CLUSTERLB" imbalance --workers 8 --target rr --target "$kernel" --target none:reuseport \
    >"$folder/dispatch-even.txt" || [ $? -eq 4 ]
cat "$folder/dispatch-even.txt"

echo "tables are in $folder" >&2
