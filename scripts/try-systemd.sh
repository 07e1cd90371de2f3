#!/usr/bin/env bash
# Runs the unit of packaging/systemd under a real systemd that is PID 1 of namespaces of its own, in
# a small Debian made by debootstrap. Under load: reload, restart by the stored sockets, restart by
# the socket unit, all without a refused connection; and the watchdog ends a primary that is stopped.
# Needs root, debootstrap, and 300 MB for the folder, which is kept below target/.
#
#   scripts/try-systemd.sh [target/debug/clusterlb] [connections a second, 300]
set -euo pipefail
binary=${1:-target/debug/clusterlb}
rate=${2:-300}
root=$PWD/target/systemd-root
work=$(mktemp -d)
init=
outer=

missing() {
    echo "not tried with systemd: $*" >&2
    exit 0
}

clean_up() {
    if [ -n "$init" ]; then kill -KILL "$init" 2>"$work/killed" || true; fi
    if [ -n "$outer" ]; then wait "$outer" 2>"$work/killed" || true; fi
    rm -rf "$work"
}
trap clean_up EXIT

[ "$(id -u)" = 0 ] || missing "only root can make the namespaces"
if [ ! -e "$root/complete" ]; then
    command -v debootstrap >"$work/which" || missing "debootstrap is not installed"
    rm -rf "$root"
    # The first Debian whose systemd knows notify-reload.
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus trixie "$root" \
        http://deb.debian.org/debian >"$work/debootstrap" 2>&1 || {
        tail -n 3 "$work/debootstrap" >&2
        missing "no Debian can be made here"
    }
    touch "$root/complete"
fi
install -m 755 "$binary" "$root/usr/bin/clusterlb"
install -m 644 packaging/systemd/clusterlb.{service,socket} "$root/etc/systemd/system/"
mkdir -p "$root/etc/systemd/system/clusterlb.service.d"
cat >"$root/etc/systemd/system/clusterlb.service.d/test.conf" <<'UNIT'
[Service]
ExecStart=
ExecStart=/usr/bin/clusterlb --listen 0.0.0.0:8000 --admin --workers 2 --settle 200ms --json
WatchdogSec=3s
UNIT

cat >"$work/boot" <<'BOOT'
set -e
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for name in run tmp dev; do mount -t tmpfs tmpfs "$root/$name"; done
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts devpts "$root/dev/pts" -o newinstance,ptmxmode=0666
ln -s pts/ptmx "$root/dev/ptmx"
ip link set lo up
cd "$root"
mkdir -p .old
pivot_root . .old
umount -l /.old
exec env -i container=test PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd --system \
    </dev/null >/dev/null 2>&1
BOOT
unshare --mount --pid --fork --cgroup --uts --ipc --net --kill-child \
    bash "$work/boot" "$root" >"$work/booted" 2>&1 &
outer=$!

within() { nsenter --target "$init" --all -- "$@"; }
wait_for() {
    for _ in $(seq 150); do
        if "$@" >"$work/waited" 2>&1; then return 0; fi
        sleep 0.2
    done
    echo "waited in vain for: $*" >&2
    cat "$work/waited" >&2
    within journalctl --no-pager -n 30 -u clusterlb >&2 || true
    return 1
}
has_init() { init=$(pgrep -P "$outer"); }
is_up() { [[ $(within systemctl is-system-running) =~ running|degraded ]]; }
wait_for has_init
if ! wait_for is_up; then
    cat "$work/booted" >&2
    missing "systemd does not start in namespaces here"
fi
within systemctl --version | head -n 1

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
