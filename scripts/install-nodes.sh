#!/bin/sh
# Installs Node's supported majors below target/, for the tests that run with every Node there is.
#
#     scripts/install-nodes.sh [MAJOR…]      18, 20, 22, 24 and 25 if none is given, but for the
#                                            major of the `node` on the path
#
# The binaries come from the npm package `node`; each takes some 200 MB. Nothing outside target/
# is touched. The tests also run with the `node` on the path, and say which ones they ran with.
set -eu

cd "$(dirname "$0")/.."
own=
if [ $# = 0 ]; then
    set -- 18 20 22 24 25
    own=$(node --version 2>/dev/null || echo none)
fi

for major in "$@"; do
    case $own in "v$major".*) continue ;; esac
    folder=target/node-$major
    program=$folder/node_modules/node/bin/node
    if [ ! -x "$program" ]; then
        mkdir -p "$folder"
        npm install --prefix "$folder" --no-audit --no-fund --loglevel error "node@$major"
    fi
    echo "$program is $("$program" --version)"
done
