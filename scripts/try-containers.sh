#!/usr/bin/env bash
# Runs clusterlb in containers without any privilege, with io_uring refused as default profiles
# refuse it, and with io_uring allowed: it serves, knows its quota, replaces a killed worker, also
# one that the kernel kills because it takes all memory, and ends within a second. Docker: with the
# daemon that runs, or one of this script's for the time, where that can be done. Podman: as root and
# as another user, with the profile that it brings. The image is made of the command and its
# libraries alone, and Perl's where that is installed, for the worker that takes all memory.
#
#   scripts/try-containers.sh [target/debug/clusterlb]
set -euo pipefail
binary=$(realpath "${1:-target/debug/clusterlb}")
folder=$(mktemp -d)
. "$(dirname "$0")/docker-daemon.sh"
# Podman leaves a file where it was started.
cd "$folder"
name=clusterlb-test-$$
# The program that runs containers, with its options, and the limits that it can set.
engine=()
limits=()

leave_engine() {
    if [ ${#engine[@]} != 0 ]; then
        "${engine[@]}" rm -f "$name" >"$folder/removed" 2>&1 || true
        "${engine[@]}" rmi -f "$name" >"$folder/removed" 2>&1 || true
        # Ends the process that Podman keeps for a user.
        if [ "${engine[0]}" = unshare ]; then
            "${engine[@]}" system migrate >"$folder/removed" 2>&1 || true
        fi
    fi
    engine=()
}

clean_up() {
    leave_engine
    cd /
    end_daemon
    rm -rf "$folder" || true
}
trap clean_up EXIT

# What Docker's default profile does to the three calls. The rest of it is the engine's own.
refused=$folder/refused.json
cat >"$refused" <<'JSON'
{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
    "names": ["io_uring_setup", "io_uring_enter", "io_uring_register"],
    "action": "SCMP_ACT_ERRNO", "errnoRet": 1
}]}
JSON
allowed=$folder/allowed.json
echo '{"defaultAction": "SCMP_ACT_ALLOW"}' >"$allowed"

# Puts a program and its libraries into the image.
add() {
    local path=$folder/image/$2
    mkdir -p "$(dirname "$path")"
    cp -L "$1" "$path"
    ldd "$1" | grep -o '/[^ ]*' | xargs -I{} cp --parents {} "$folder/image"
}

chmod 755 "$folder"
add "$binary" clusterlb
perl=$(command -v perl || true)
if [ -n "$perl" ]; then add "$perl" perl; fi
cat >"$folder/image/server.pl" <<'PERL'
open(my $listener, "+<&=3") or die "no listener: $!";
while (accept(my $client, $listener)) {
    my $line = readline($client) // "";
    if ($line =~ m{ /all-memory }) { my @held; push @held, "x" x 1_000_000 while 1; }
    while ((readline($client) // "") =~ /\S/) { }
    print $client "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nhello world\n";
    close $client;
}
PERL
printf 'FROM scratch\nCOPY . /\nENTRYPOINT ["/clusterlb"]\n' >"$folder/image/Dockerfile"

log() { "${engine[@]}" logs "$name" 2>&1; }
heard() { log | grep -q "$1"; }
expect() { wait_for heard "$1" || { log >&2; echo "not heard: $1" >&2; exit 1; }; }
inspect() { "${engine[@]}" inspect -f "$1" "$name"; }
unprivileged=(--network host --cap-drop ALL --read-only --user 1000)
unprivileged+=(--security-opt no-new-privileges)

# $1: options for the profile; the rest: clusterlb's arguments.
start() {
    # shellcheck disable=SC2206 # the options are words
    local profile=($1)
    shift
    "${engine[@]}" run -d --name "$name" "${unprivileged[@]}" "${limits[@]}" "${profile[@]}" \
        "$name" --json --listen 127.0.0.1:0 "$@" >"$folder/id"
    expect '"event":"listening"'
    address=$(log | grep -o '127\.0\.0\.1:[0-9]*' | head -n 1)
}

# Asks for a path on a new connection, and prints the response.
ask() {
    exec 3<>"/dev/tcp/127.0.0.1/${address##*:}"
    printf 'GET %s HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n' "$1" >&3
    cat <&3 2>"$folder/reset" || true
    exec 3>&-
}
serves() { ask / | grep -q 'hello world'; }

# Milliseconds from the run's begin to its first event of a kind.
at_ms() { log | sed -n "s/.*\"event\":\"$1\".*\"at_ms\":\([0-9]*\).*/\1/p"; }

# Ends the container. What the engine itself takes is no time of the run.
stop() {
    local took code
    "${engine[@]}" stop -t 30 "$name" >"$folder/id"
    code=$(inspect '{{.State.ExitCode}}')
    expect '"event":"summary"'
    took=$(($(at_ms summary) - $(at_ms draining)))
    "${engine[@]}" rm -f "$name" >"$folder/id"
    echo "$1, ended after $took ms with code $code"
    [ "$code" = 0 ] && [ "$took" -lt 1000 ]
}

# A worker that is killed is replaced. $1: options for the profile, $2: the engine of the run.
try_kill() {
    start "$1" --workers 2
    expect "\"engine\":\"$2\""
    serves
    kill -KILL "$(ps -o pid= --ppid "$(inspect '{{.State.Pid}}')" | head -n 1)"
    expect '"event":"respawn"'
    serves
    stop "$2: served, replaced a killed worker"
}

# The kernel kills the worker that takes all memory, and not the primary.
try_memory() {
    start "" --workers 2 --dialect listen-fds -- /perl /server.pl
    serves
    ask /all-memory
    expect '"signal":"SIGKILL"'
    expect '"event":"respawn"'
    serves
    stop "memory: served, replaced a worker that took all of it"
}

# $1: what is tried. Fails where no image can be built or started.
try_engine() {
    local check
    if ! "${engine[@]}" build -q -t "$name" "$folder/image" >"$folder/built" 2>&1 ||
        ! check=$("${engine[@]}" run --rm "${unprivileged[@]}" "${limits[@]}" "$name" check 2>&1)
    then
        cat "$folder/built" >&2
        echo "${check:-}" >&2
        echo "not tried: $1 runs no container here" >&2
        leave_engine
        return
    fi
    echo "$1:"
    grep 'can run here' <<<"$check"
    # A quota of one and a half CPUs leaves one worker.
    if [ ${#limits[@]} != 0 ]; then grep 'CPU quota\|workers auto.*1 worker' <<<"$check"; fi
    try_kill "--security-opt seccomp=$refused" epoll
    if "$binary" check | grep -q 'can run here (io_uring'; then
        try_kill "--security-opt seccomp=$allowed" io_uring
    fi
    if [ ${#limits[@]} != 0 ] && [ -n "$perl" ]; then try_memory; fi
    leave_engine
}

all_limits=(--memory 100m --memory-swap 100m --cpus 1.5)
if begin_daemon; then
    engine=(docker)
    limits=("${all_limits[@]}")
    try_engine Docker
else
    echo "not tried: Docker, which is missing or has no daemon" >&2
fi

if ! command -v podman >"$folder/which" || [ "$(id -u)" != 0 ]; then
    echo "not tried: Podman, which is missing or takes root to be set up here" >&2
    exit 0
fi
# Its storage lies in a folder of this script's, and it sets no limits that this account may not.
printf '[containers]\ndefault_ulimits = []\n' >"$folder/containers.conf"
export CONTAINERS_CONF=$folder/containers.conf
podman=(podman --storage-driver vfs --cgroup-manager cgroupfs --events-backend file)
# crun does not know machines with cgroups of both versions.
if command -v runc >"$folder/which"; then podman+=(--runtime runc); fi
engine=("${podman[@]}" --tmpdir "$folder/podman-tmp")
engine+=(--root "$folder/podman" --runroot "$folder/podman-run")
limits=("${all_limits[@]}")
try_engine Podman

# As another user, which needs separate user ids: these are given to it in a mount namespace.
mkdir -p "$folder/user/run"
chown -R nobody "$folder/user"
echo nobody:100000:65536 >"$folder/ids"
cat >"$folder/as-user" <<SH
mount --bind "$folder/ids" /etc/subuid && mount --bind "$folder/ids" /etc/subgid || exit
export HOME=$folder/user XDG_RUNTIME_DIR=$folder/user/run TMPDIR=$folder/user
cd "$folder/user" && exec setpriv --reuid nobody --regid nogroup --clear-groups "\$@"
SH
# Where a user may not set limits, which takes cgroups of version 2, there are none.
limits=()
engine=(unshare -m bash "$folder/as-user" "${podman[@]}")
engine+=(--root "$folder/user/podman" --runroot "$folder/user/podman-run")
try_engine "Podman without root"
