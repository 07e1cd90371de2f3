#!/bin/sh
# What idle connections cost: memory of the workers' processes for each, and processor time while
# nothing happens.
#
#     scripts/idle.sh [CONNECTIONS [WORKERS]]        100000 over 8 workers if nothing is given
#
# Each worker and each generator needs a descriptor for each of its connections, so there are as
# many generators as the hard limit of descriptors (`ulimit -Hn`) asks for; raise it, or the number
# of workers, for more. The kernel needs some 10 KiB for both ends of a connection. Everything runs
# on the loopback, for about a minute. CLUSTERLB names a command that is built already.
set -eu

cd "$(dirname "$0")/.."
connections=${1:-100000}
workers=${2:-8}
idle_s=10

if [ -z "${CLUSTERLB:-}" ]; then
    cargo build --release --bin clusterlb
    CLUSTERLB=target/release/clusterlb
fi

limit=$(ulimit -Hn)
[ "$limit" = unlimited ] && limit=1048576
ulimit -n "$limit"
# A few descriptors are for other things, and a worker takes no message without room for it.
room=$((limit - 200))
if [ $((connections / workers)) -gt "$room" ]; then
    echo "$connections connections over $workers workers need more than the $limit descriptors" \
        "that a process may have here; give more workers" >&2
    exit 1
fi
generators=$(((connections + room - 1) / room))
sources=$((connections / 10000 + 1))

folder=$(mktemp -d)
server=
holders=
finish() {
    # The server last, so that it sees its clients go.
    for pid in $holders $server; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in $holders $server; do
        wait "$pid" 2>/dev/null || true
    done
    rm -r "$folder"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Idle connections are not to be closed for it while they are looked at.
"$CLUSTERLB" --workers "$workers" --listen 127.0.0.1:0 --idle-timeout 1h --header-timeout 1h \
    --json >"$folder/events" &
server=$!
until [ "$(grep -c '"event":"online"' "$folder/events")" -ge "$workers" ]; do
    kill -0 "$server"
    sleep 0.1
done
address=$(sed -n 's/.*"event":"listening".*"address":"\([^"]*\)".*/\1/p' "$folder/events" | head -1)
[ -n "$address" ] ||
    address=$(sed -n 's/.*"address":"\([^"]*\)".*/\1/p' "$folder/events" | head -1)
pids=$(sed -n '/"event":"online"/s/.*"pid":\([0-9]*\).*/\1/p' "$folder/events")

# Sum over the workers of a field of /proc/PID/status, in KiB.
memory() {
    for pid in $pids; do
        sed -n "s/^$1:[[:space:]]*\([0-9]*\) kB/\1/p" "/proc/$pid/status"
    done | awk '{ sum += $1 } END { print sum + 0 }'
}
# Processor time of the primary and the workers so far, in ticks of 10 ms. No name has a space.
ticks() {
    for pid in $server $pids; do
        cut -d' ' -f14,15 "/proc/$pid/stat"
    done | awk '{ sum += $1 + $2 } END { print sum + 0 }'
}
# Descriptors of the workers, which is how many connections they have, and a few.
descriptors() {
    for pid in $pids; do
        ls "/proc/$pid/fd"
    done | wc -l
}

# What is set up with the first connections is not for those that are looked at.
"$CLUSTERLB" load "$address" -c 64 -d 1s >/dev/null
sleep 1
before_rss=$(memory VmRSS)
before_anonymous=$(memory RssAnon)
before_descriptors=$(descriptors)

left=$connections
while [ "$generators" -gt 0 ]; do
    share=$((left / generators))
    # A request a second keeps the generator going; it is not one of those that are held. Each
    # source address has some 28,000 ports, and the generators share the addresses.
    "$CLUSTERLB" load "$address" --hold "$share" --sources "$sources" --rate 1 -d 1h \
        >/dev/null 2>"$folder/complaint.$generators" &
    holders="$holders $!"
    left=$((left - share))
    generators=$((generators - 1))
done

held=0
waited_s=0
while [ "$held" -lt "$connections" ]; do
    sleep 1
    waited_s=$((waited_s + 1))
    held=$(($(descriptors) - before_descriptors))
    for pid in $holders; do
        kill -0 "$pid" 2>/dev/null || {
            echo "a generator has ended at $held connections:" >&2
            cat "$folder"/complaint.* >&2
            exit 1
        }
    done
    if [ "$waited_s" -gt 300 ]; then
        echo "only $held connections are held after 300 s; the rest found no descriptors" >&2
        exit 1
    fi
done
sleep 2
rss=$(($(memory VmRSS) - before_rss))
anonymous=$(($(memory RssAnon) - before_anonymous))

# The generators' requests would not be idleness.
for pid in $holders; do
    kill -STOP "$pid"
done
sleep 1
before_ticks=$(ticks)
sleep "$idle_s"
used_ms=$((($(ticks) - before_ticks) * 10))
for pid in $holders; do
    kill -CONT "$pid"
done

echo "$held connections over $workers workers"
echo "resident memory of the workers: $rss KiB more, $((rss * 1024 / held)) bytes a connection"
echo "anonymous memory of them: $anonymous KiB more, $((anonymous * 1024 / held)) bytes a connection"
echo "processor time of the primary and the workers in $idle_s idle seconds: $used_ms ms"
