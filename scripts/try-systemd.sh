#!/usr/bin/env bash
# Runs the unit of packaging/systemd under a real systemd that is PID 1 of separate namespaces, in
# a small Debian made by debootstrap. Under load: reload, restart by the stored sockets, restart by
# the socket unit, all without a refused connection; and the watchdog ends a primary that is stopped.
# Needs root, debootstrap, and 300 MB for the folder, which is kept below target/.
#
#   scripts/try-systemd.sh [target/debug/clusterlb] [connections a second, 300]
set -euo pipefail
binary=${1:-target/debug/clusterlb}
rate=${2:-300}
work=$(mktemp -d)
. scripts/systemd-root.sh

clean_up() {
    halt
    rm -rf "$work"
}
trap clean_up EXIT

make_root
install -m 755 "$binary" "$root/usr/bin/clusterlb"
install -m 644 packaging/systemd/clusterlb.{service,socket} "$root/etc/systemd/system/"
mkdir -p "$root/etc/systemd/system/clusterlb.service.d"
cat >"$root/etc/systemd/system/clusterlb.service.d/test.conf" <<'UNIT'
[Service]
ExecStart=
ExecStart=/usr/bin/clusterlb --listen 0.0.0.0:8000 --admin --workers 2 --settle 200ms --json
WatchdogSec=3s
UNIT

boot

pid() { within systemctl show -P MainPID clusterlb; }
status() { within systemctl show -P StatusText clusterlb; }
# The load of each step; a request that fails makes it fail.
load=
begin_load() {
    within /usr/bin/clusterlb load --rate "$rate" --duration "$1" --expect errors=0 \
        http://127.0.0.1:8000/ >"$work/load" 2>&1 &
    load=$!
    sleep 1
}
end_load() {
    wait "$load" || { cat "$work/load" >&2; echo "$1: requests failed" >&2; exit 1; }
    echo "$1: $(grep -m 1 '^starts' "$work/load" | tr -s ' ' | cut -d, -f1), none failed"
}

within systemctl start clusterlb
echo "started: $(status)"
within systemctl show -P NFileDescriptorStore clusterlb | grep -qx 1
before=$(pid)

begin_load 6s
within systemctl reload clusterlb
[ "$(pid)" = "$before" ]
end_load "reload under load"

begin_load 8s
within systemctl restart clusterlb
after=$(pid)
[ "$after" != "$before" ]
end_load "restart under load, by the stored socket"

within systemctl kill --kill-whom=main --signal=STOP clusterlb
is_replaced() { [ "$(pid)" != "$after" ] && [ "$(pid)" != 0 ]; }
wait_for is_replaced
within journalctl --no-pager -u clusterlb | grep -i 'watchdog timeout' | tail -n 1

within systemctl stop clusterlb
within systemctl show -P NFileDescriptorStore clusterlb | grep -qx 0
within systemctl start clusterlb.socket
begin_load 8s
before=$(pid)
within systemctl restart clusterlb
[ "$(pid)" != "$before" ]
end_load "restart under load, by the socket unit"
within systemctl stop clusterlb.socket clusterlb
within systemd-analyze security --no-pager clusterlb | tail -n 1
