# For a script that tries something in Docker, which sources this: the daemon that runs, or a new one
# that `end_daemon` ends, where that can be done. Needs a folder in $folder.

daemon=

wait_for() {
    for _ in $(seq 150); do
        if "$@"; then return 0; fi
        sleep 0.2
    done
    return 1
}

has_daemon() { docker info >"$folder/info" 2>&1; }

# Fails where there is no daemon and none can be started.
begin_daemon() {
    command -v docker >"$folder/which" || return 1
    if has_daemon; then return; fi
    if [ "$(id -u)" != 0 ] || ! command -v dockerd >"$folder/which"; then return 1; fi
    export DOCKER_HOST=unix://$folder/socket
    dockerd --host "$DOCKER_HOST" --pidfile "$folder/pid" --data-root "$folder/data" \
        --exec-root "$folder/exec" --iptables=false --bridge=none --storage-driver vfs \
        >"$folder/daemon.log" 2>&1 &
    daemon=$!
    wait_for has_daemon
}

end_daemon() {
    if [ -z "$daemon" ]; then return; fi
    kill "$daemon" || true
    wait "$daemon" || true
    daemon=
    umount "$folder"/exec/netns/* 2>"$folder/removed" || true
}
