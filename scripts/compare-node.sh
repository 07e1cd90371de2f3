#!/bin/sh
# This program as the primary of Node's workers beside Node's own primary: the same script, the
# same load, taking turns. For the Node on the path and every one that scripts/install-nodes.sh
# has installed.
#
#     scripts/compare-node.sh [FOLDER]        the folder is `measurements` if none is given
#
# Leaves a table, a page and rows for other programs for each version of Node. BENCH_OPTIONS stands
# in for the load: BENCH_OPTIONS='-s short -w 4 -r 12' scripts/compare-node.sh
#
# Takes some five minutes for each Node, most of it until Node has compiled what it runs. Everything
# runs on the loopback.
set -eu

cd "$(dirname "$0")/.."
folder=${1:-measurements}

command -v node >/dev/null 2>&1 || {
    echo "there is no node on the PATH; to install it: apt-get install nodejs" >&2
    exit 3
}

cargo build --release --bin clusterlb
program=${CARGO_TARGET_DIR:-target}/release/clusterlb
mkdir -p "$folder"

load=${BENCH_OPTIONS:---scenario capacity --workers 2 --repeats 6 --duration 2s --warmup 3s}
# Compared with the first one. With two CPUs the server has one and the generator the other.
targets='-t node:rr -t node:none -t rr+node -t least+node -t none+node -t none:reuseport+node'

# A measurement of which too few trials count for something ends with 4, which is a result.
compare() {
    name=$(node --version)
    code=0
    # shellcheck disable=SC2086 # options are words
    "$program" bench $load $targets --report "$folder/node-$name.html" \
        --csv "$folder/node-$name.csv" >"$folder/node-$name.txt" || code=$?
    case $code in
    0) ;;
    4) echo "$name: too few trials count; $folder/node-$name.txt says of what and why" >&2 ;;
    *) exit "$code" ;;
    esac
    cat "$folder/node-$name.txt"
}

own=$(node --version)
compare
for place in target/node-*/node_modules/node/bin; do
    # The folder is first on the PATH, for Node's primary, its workers, and ours.
    if [ -x "$place/node" ] && [ "$("$place/node" --version)" != "$own" ]; then
        (PATH=$PWD/$place:$PATH && compare)
    fi
done

echo "tables and pages are in $folder" >&2
