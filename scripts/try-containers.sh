#!/usr/bin/env bash
# Runs clusterlb in Docker without any privilege, with io_uring refused as the default profile of
# Docker 25 and later refuses it, and with io_uring allowed: it serves, knows its quota, replaces a
# killed worker, and ends within a second. Uses the daemon that runs, or starts one of its own for
# the time where that can be done. The image is made of the command and its libraries alone.
#
#   scripts/try-containers.sh [target/debug/clusterlb]
set -euo pipefail
binary=${1:-target/debug/clusterlb}
folder=$(mktemp -d)
daemon=
name=clusterlb-test-$$

clean_up() {
    docker rm -f "$name" >"$folder/removed" 2>&1 || true
    docker rmi -f "$name" >"$folder/removed" 2>&1 || true
    if [ -n "$daemon" ]; then
        kill "$daemon" || true
        wait "$daemon" || true
        umount "$folder"/exec/netns/* 2>"$folder/removed" || true
    fi
    rm -rf "$folder" || true
}
trap clean_up EXIT

missing() {
    echo "not tried in containers: $*" >&2
    exit 0
}

wait_for() {
    for _ in $(seq 150); do
        if "$@"; then return 0; fi
        sleep 0.2
    done
    return 1
}

has_daemon() { docker info >"$folder/info" 2>&1; }

command -v docker >"$folder/which" || missing "docker is not installed"
if ! has_daemon; then
    if [ "$(id -u)" != 0 ] || ! command -v dockerd >"$folder/which"; then
        missing "no daemon runs"
    fi
    export DOCKER_HOST=unix://$folder/socket
    dockerd --host "$DOCKER_HOST" --pidfile "$folder/pid" --data-root "$folder/data" \
        --exec-root "$folder/exec" --iptables=false --bridge=none --storage-driver vfs \
        >"$folder/daemon.log" 2>&1 &
    daemon=$!
    wait_for has_daemon || missing "no daemon starts here"
fi

# What Docker's default profile does to the three calls. The rest of it is this daemon's own.
refused=$folder/refused.json
cat >"$refused" <<'JSON'
{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
    "names": ["io_uring_setup", "io_uring_enter", "io_uring_register"],
    "action": "SCMP_ACT_ERRNO", "errnoRet": 1
}]}
JSON
allowed=$folder/allowed.json
echo '{"defaultAction": "SCMP_ACT_ALLOW"}' >"$allowed"

mkdir "$folder/image"
cp "$binary" "$folder/image/clusterlb"
ldd "$binary" | grep -o '/[^ ]*' | xargs -I{} cp --parents {} "$folder/image"
printf 'FROM scratch\nCOPY . /\nENTRYPOINT ["/clusterlb"]\n' >"$folder/image/Dockerfile"
docker build -q -t "$name" "$folder/image" >"$folder/built" 2>&1 || {
    cat "$folder/built" >&2
    missing "no image can be built"
}

log() { docker logs "$name" 2>&1; }
heard() { log | grep -q "$1"; }
expect() { wait_for heard "$1" || { log >&2; echo "not heard: $1" >&2; exit 1; }; }

# $1: the profile, $2: the engine that is to be found.
try() {
    docker run -d --name "$name" --network host --cap-drop ALL --read-only --user 1000 \
        --memory 100m --cpus 1.5 --security-opt "seccomp=$1" \
        "$name" --json --workers 2 --listen 127.0.0.1:0 >"$folder/id"
    expect '"event":"listening"'
    expect "\"engine\":\"$2\""
    local address primary worker begin took code
    address=$(log | grep -o '127\.0\.0\.1:[0-9]*' | head -n 1)
    exec 3<>"/dev/tcp/127.0.0.1/${address##*:}"
    printf 'GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n' >&3
    grep -q 'hello world' <&3
    exec 3>&-
    primary=$(docker inspect -f '{{.State.Pid}}' "$name")
    worker=$(ps -o pid= --ppid "$primary" | head -n 1)
    kill -KILL "$worker"
    expect '"event":"respawn"'
    begin=$(date +%s%N)
    docker stop -t 30 "$name" >"$folder/id"
    took=$((($(date +%s%N) - begin) / 1000000))
    code=$(docker inspect -f '{{.State.ExitCode}}' "$name")
    expect '"event":"summary"'
    docker rm -f "$name" >"$folder/id"
    echo "$2: served, replaced a killed worker, ended after $took ms with code $code"
    [ "$code" = 0 ] && [ "$took" -lt 1000 ]
}

# The quota of one and a half CPUs leaves one worker, and check says so.
quota=$(docker run --rm --cpus 1.5 --user 1000 --cap-drop ALL --read-only "$name" check)
grep -q 'can run here' <<<"$quota"
grep 'CPU quota\|workers auto' <<<"$quota"
try "$refused" epoll
if "$binary" check | grep -q 'can run here (io_uring'; then try "$allowed" io_uring; fi
