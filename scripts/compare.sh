#!/bin/sh
# The full comparison: who takes the load, and what it costs, against nginx, HAProxy and Node.
#
# Installs what is missing from Debian's packages (as root; otherwise it says what to install and
# goes on with what there is), builds, measures, and leaves pages and tables in a folder:
#
#     scripts/compare.sh [FOLDER]        the folder is `measurements` if none is given
#
# Further words for `clusterlb bench` come from BENCH_OPTIONS, for `clusterlb imbalance` from
# IMBALANCE_OPTIONS: BENCH_OPTIONS='--duration 10s --repeats 12' scripts/compare.sh
#
# Takes about two hours with the defaults. Everything runs on the loopback.
set -eu

cd "$(dirname "$0")/.."
folder=${1:-measurements}

# A program and the Debian packages that bring it.
need() {
    program=$1
    shift
    if command -v "$program" >/dev/null 2>&1; then
        return
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        # Only installed, not started as services: the comparison starts its own.
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
    else
        echo "$program is missing and will be left out; to install it: apt-get install $*" >&2
    fi
}

need nginx nginx libnginx-mod-http-echo
need haproxy haproxy
need node nodejs

peers=
for program in nginx haproxy node; do
    if command -v "$program" >/dev/null 2>&1; then
        peers="${peers:+$peers,}$program"
    fi
done

. scripts/measure.sh

# shellcheck disable=SC2086 # options are words
measure imbalance imbalance ${IMBALANCE_OPTIONS:-}
# Where nothing is pinned, servers cost something else than on CPUs of their own.
for placement in split shared; do
    # shellcheck disable=SC2086
    measure "policies-$placement" bench --placement "$placement" --scenario all ${BENCH_OPTIONS:-}
    if [ -n "$peers" ]; then
        # shellcheck disable=SC2086
        measure "peers-$placement" bench --placement "$placement" --scenario all \
            --against "$peers" ${BENCH_OPTIONS:-}
    fi
done

echo "pages and tables are in $folder" >&2
