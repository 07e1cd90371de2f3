# For a script that tries something in Docker, which sources this: the daemon that runs, or one of its
# own for the time where that can be done. It has a folder in $folder, and calls `end_daemon` at its
# end.

daemon=

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

begin_daemon() {
    command -v docker >"$folder/which" || missing "docker is not installed"
    if has_daemon; then return; fi
    if [ "$(id -u)" != 0 ] || ! command -v dockerd >"$folder/which"; then
        missing "no daemon runs"
    fi
    export DOCKER_HOST=unix://$folder/socket
    dockerd --host "$DOCKER_HOST" --pidfile "$folder/pid" --data-root "$folder/data" \
        --exec-root "$folder/exec" --iptables=false --bridge=none --storage-driver vfs \
        >"$folder/daemon.log" 2>&1 &
    daemon=$!
    wait_for has_daemon || missing "no daemon starts here"
}

end_daemon() {
    if [ -z "$daemon" ]; then return; fi
    kill "$daemon" || true
    wait "$daemon" || true
    daemon=
    umount "$folder"/exec/netns/* 2>"$folder/removed" || true
}
