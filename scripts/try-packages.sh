#!/usr/bin/env bash
# Makes what is handed out, installs it, and runs it:
#
# * the Debian package, in a small Debian with a real systemd as PID 1: its unit serves with the
#   options of the package, its man pages and completions are there, it upgrades over itself, and
#   `apt-get purge` leaves nothing of it;
# * the Dockerfile, unchanged, as PID 1. Its base images come from here where no registry is at hand:
#   Debian by debootstrap, with the Rust of this machine. Without optimisation, to be done soon;
# * the manifests for Kubernetes and Envoy, with `kubernetes-validate` and Envoy, if target/python
#   has them (scripts/install-python.sh --deploy).
#
# Needs root, debootstrap, cargo-deb and Docker, and 3 GB below target/. What is missing is named.
#
#   scripts/try-packages.sh [target/debug/clusterlb] [deb|docker|manifests]
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-target/debug/clusterlb}
only=${2:-}

try_deb() {
    local package file
    work=$(mktemp -d)
    . scripts/systemd-root.sh
    trap 'halt; rm -rf "$work"' EXIT
    cargo deb --version >"$work/which" 2>&1 || missing "cargo-deb is not installed"
    make_root
    CLUSTERLB=$binary scripts/package.sh >"$work/packaged" 2>&1 || { cat "$work/packaged"; exit 1; }
    package=$(ls -t target/debian/clusterlb_*.deb | head -n 1)
    cp "$package" "$root/clusterlb.deb"
    boot
    # Nothing of an earlier try may hide what the package lacks.
    within sh -c 'rm -rf /etc/systemd/system/clusterlb* /usr/bin/clusterlb'
    within sh -c 'DEBIAN_FRONTEND=noninteractive dpkg -i /clusterlb.deb' >"$work/installed" 2>&1 ||
        { cat "$work/installed" >&2; exit 1; }
    [ "$(within systemctl is-enabled clusterlb || true)" = disabled ]
    within systemctl start clusterlb
    serves() {
        within bash -c 'exec 3<>/dev/tcp/127.0.0.1/8000 &&
            printf "GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n" >&3 &&
            grep -q "hello world" <&3'
    }
    wait_for serves
    within systemctl reload clusterlb
    serves
    within env XDG_RUNTIME_DIR=/run/clusterlb clusterlb status --admin unix:/run/clusterlb/clusterlb.sock \
        | head -n 1
    within sh -c 'MANPAGER=cat man clusterlb' | grep -q 'max-inflight'
    within bash -c '. /usr/share/bash-completion/bash_completion
        . /usr/share/bash-completion/completions/clusterlb
        COMP_WORDS=(clusterlb sca) COMP_CWORD=1
        _clusterlb clusterlb sca clusterlb
        [ "${COMPREPLY[0]}" = scale ]'
    within sh -c 'dpkg -i /clusterlb.deb' >"$work/installed" 2>&1
    serves
    within sh -c 'DEBIAN_FRONTEND=noninteractive dpkg --purge clusterlb' >"$work/purged" 2>&1
    if within systemctl is-active -q clusterlb; then echo 'it still runs' >&2; exit 1; fi
    file=$(within find / -xdev -name '*clusterlb*' -not -path '/proc/*' -not -path '/sys/*' \
        -not -path '/var/log/*' -not -path '/var/cache/man/*' -not -path '/clusterlb.deb')
    [ -z "$file" ] || { echo "left behind: $file" >&2; exit 1; }
    echo "$(basename "$package"): installed, served, reloaded, installed again, purged"
    rm -f "$root/clusterlb.deb"
}

# The image that the Dockerfile builds with: Debian and the Rust of this machine.
make_builder() {
    local sysroot target=$base/builder
    sysroot=$(rustc --print sysroot)
    cp -a "$base/debian" "$target"
    mkdir -p "$target/usr/local/lib/rustlib" "$target/usr/local/bin"
    cp "$sysroot"/bin/{cargo,rustc} "$target/usr/local/bin"
    cp "$sysroot"/lib/*.so* "$target/usr/local/lib"
    cp -a "$sysroot/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')" "$target/usr/local/lib/rustlib"
    # Where the network has a private authority, this machine knows it.
    cp /etc/ssl/certs/ca-certificates.crt "$target/etc/ssl/certs/ca-certificates.crt"
    tar -C "$target" -c . | docker import \
        --change 'ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin' \
        --change 'ENV CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=0' \
        --change 'ENV CARGO_PROFILE_RELEASE_CODEGEN_UNITS=256 CARGO_PROFILE_RELEASE_DEBUG=0' \
        - "$1" >"$folder/imported"
    rm -rf "$target"
}

# The image that it ends as: the C library and an account, as in "distroless".
make_small() {
    local target=$base/small
    mkdir -p "$target"/{etc,tmp,usr/lib,usr/lib64}
    chroot "$base/debian" dpkg -L libc6 libgcc-s1 | sed -n 's,^/\([^.].*\),\1,p' |
        tar -C "$base/debian" --no-recursion -c -T - | tar -C "$target" -x
    echo 'nonroot:x:65532:65532:nonroot:/nonexistent:/sbin/nologin' >"$target/etc/passwd"
    tar -C "$target" -c . | docker import --change 'USER 65532' - "$1" >"$folder/imported"
    rm -rf "$target"
}

try_docker() {
    local small builder primary address code
    name=clusterlb-packages-$$
    folder=$(mktemp -d -p target)
    folder=$PWD/$folder
    . scripts/docker-daemon.sh
    trap 'docker rm -f "$name" >"$folder/removed" 2>&1 || true
        docker rmi -f "$name" >"$folder/removed" 2>&1 || true
        end_daemon; rm -rf "$folder"' EXIT
    begin_daemon || missing "Docker is not installed, or no daemon runs or starts here"
    builder=$(sed -n 's/^FROM \(.*\) AS build$/\1/p' packaging/Dockerfile)
    small=$(sed -n 's/^FROM \([^ ]*\)$/\1/p' packaging/Dockerfile)
    if ! docker pull "$builder" >"$folder/pulled" 2>&1 ||
        ! docker pull "$small" >"$folder/pulled" 2>&1; then
        base=$PWD/target/docker-base
        if [ ! -e "$base/debian/complete" ]; then
            command -v debootstrap >"$folder/which" || missing "no registry, and no debootstrap"
            rm -rf "$base"
            debootstrap --variant=minbase --include=ca-certificates bookworm "$base/debian" \
                http://deb.debian.org/debian >"$folder/debootstrap" 2>&1 ||
                missing "no registry, and no Debian can be made here"
            touch "$base/debian/complete"
        fi
        make_builder "$builder"
        make_small "$small"
        echo "its base images were made here"
    fi
    docker build --network host -t "$name" -f packaging/Dockerfile . >"$folder/built" 2>&1 ||
        { tail -n 30 "$folder/built" >&2; exit 1; }
    docker images --format '{{.Repository}} {{.Size}}' "$name" | sed 's/^[^ ]* /the image has /'
    docker run --rm "$name" --version | head -n 1
    docker run -d --name "$name" --network host --read-only --cap-drop ALL "$name" \
        --workers 2 --listen 127.0.0.1:0 --json >"$folder/id"
    heard() { docker logs "$name" 2>&1 | grep -q "$1"; }
    wait_for heard '"event":"listening"' || { docker logs "$name" >&2; exit 1; }
    [ "$(docker exec "$name" /usr/local/bin/clusterlb --version | head -c 9)" = clusterlb ]
    primary=$(docker inspect -f '{{.State.Pid}}' "$name")
    grep -q '^NSpid:.*\s1$' "/proc/$primary/status"
    grep -q '^Uid:\s65532' "/proc/$primary/status"
    address=$(docker logs "$name" 2>&1 | grep -o '127\.0\.0\.1:[0-9]*' | head -n 1)
    curl -sS --fail "http://$address/" | grep -q 'hello world'
    docker stop -t 30 "$name" >"$folder/id"
    code=$(docker inspect -f '{{.State.ExitCode}}' "$name")
    [ "$code" = 0 ] || { echo "it ended with $code" >&2; exit 1; }
    echo "Dockerfile: built, served as PID 1 of user 65532, ended in order"
}

try_manifests() {
    local tools=target/python/bin
    if [ -x "$tools/kubernetes-validate" ]; then
        "$tools/kubernetes-validate" --strict --no-warn examples/deploy/kubernetes.yaml
    else
        echo "not tried with the schemas of Kubernetes: no $tools/kubernetes-validate" >&2
    fi
    if [ -x "$tools/envoy" ]; then
        "$tools/envoy" --mode validate --log-level warn -c examples/deploy/envoy.yaml
        try_envoy "$tools/envoy"
    else
        echo "not tried with Envoy: no $tools/envoy" >&2
    fi
}

# Two runs as two machines: Envoy follows /readyz when one of them gets SIGTERM.
try_envoy() (
    work=$(mktemp -d)
    one= two= envoy=
    trap 'kill $one $two $envoy 2>"$work/killed" || true; wait; rm -rf "$work"' EXIT
    port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
    web=$(port) admin=$(port) front=$(port)
    for host in 2 3; do
        "$binary" --workers 1 --listen "127.0.0.$host:$web" --admin "127.0.0.$host:$admin" \
            --drain-delay 4s --json >"$work/run-$host" &
        if [ "$host" = 2 ]; then one=$!; else two=$!; fi
    done
    sed -e "s/192.0.2.11, port_value: 8000/127.0.0.2, port_value: $web/" \
        -e "s/192.0.2.12, port_value: 8000/127.0.0.3, port_value: $web/" \
        -e "s/port_value: 9100/port_value: $admin/" \
        -e "s/0.0.0.0, port_value: 8080/127.0.0.1, port_value: $front/" \
        examples/deploy/envoy.yaml >"$work/envoy.yaml"
    "$1" --log-level error --disable-hot-restart --concurrency 1 -c "$work/envoy.yaml" \
        >"$work/envoy" 2>&1 &
    envoy=$!
    answers() { curl -sS --fail -m 2 "http://127.0.0.1:$front/" 2>"$work/curl" | grep -q 'hello world'; }
    for _ in $(seq 100); do answers && break; sleep 0.2; done
    "$binary" load --rate 50 --duration 8s --expect errors=0 "http://127.0.0.1:$front/" \
        >"$work/load" 2>&1 &
    load=$!
    sleep 2
    kill -TERM "$one"
    wait "$one" || { echo "the run did not end in order" >&2; exit 1; }
    one=
    wait "$load" || { cat "$work/load" >&2; echo "requests failed" >&2; exit 1; }
    answers
    echo "Envoy: one of two machines drained and ended under load, no request failed"
)

for what in ${only:-manifests deb docker}; do (try_"$what"); done
