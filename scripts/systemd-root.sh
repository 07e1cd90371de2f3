# For scripts that try something under a real systemd, which source this: a small Debian made by
# debootstrap in target/systemd-root, and systemd as PID 1 of separate namespaces in it. They have
# a folder in $work, and call `halt` at their end.

root=$PWD/target/systemd-root
init=
outer=

missing() {
    echo "not tried with systemd: $*" >&2
    exit 0
}

make_root() {
    [ "$(id -u)" = 0 ] || missing "only root can make the namespaces"
    if [ -e "$root/complete" ]; then return; fi
    command -v debootstrap >"$work/which" || missing "debootstrap is not installed"
    rm -rf "$root"
    # The first Debian whose systemd knows notify-reload.
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,man-db,bash-completion \
        trixie "$root" http://deb.debian.org/debian >"$work/debootstrap" 2>&1 || {
        tail -n 3 "$work/debootstrap" >&2
        missing "no Debian can be made here"
    }
    touch "$root/complete"
}

boot() {
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
    wait_for has_init
    if ! wait_for is_up; then
        cat "$work/booted" >&2
        missing "systemd does not start in namespaces here"
    fi
    within systemctl --version | head -n 1
}

halt() {
    if [ -n "$init" ]; then kill -KILL "$init" 2>"$work/killed" || true; fi
    if [ -n "$outer" ]; then wait "$outer" 2>"$work/killed" || true; fi
    init=
    outer=
}

within() { nsenter --target "$init" --all -- "$@"; }
has_init() { init=$(pgrep -P "$outer"); }
is_up() { [[ $(within systemctl is-system-running) =~ running|degraded ]]; }
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
