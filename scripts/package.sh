#!/bin/sh
# Makes a Debian package with `cargo deb`: the command, its man pages and completions, the units of
# systemd and an example of a configuration.
#
#     scripts/package.sh                                    target/debian/clusterlb_VERSION_ARCH.deb
#
# It needs cargo-deb (`cargo install cargo-deb`). CLUSTERLB names a command that is built already.
set -eu

cd "$(dirname "$0")/.."
if [ -z "${CLUSTERLB:-}" ]; then
    cargo build --release --locked --bin clusterlb
    CLUSTERLB=target/release/clusterlb
fi

folder=target/packaging
rm -rf "$folder"
mkdir -p "$folder/man" "$folder/completions"
cp "$CLUSTERLB" "$folder/clusterlb"
"$CLUSTERLB" man "$folder/man"
# Debian compresses its man pages.
gzip -9n "$folder"/man/*.1
"$CLUSTERLB" completions bash > "$folder/completions/clusterlb"
"$CLUSTERLB" completions zsh > "$folder/completions/_clusterlb"
"$CLUSTERLB" completions fish > "$folder/completions/clusterlb.fish"

cargo deb --no-build --no-strip --locked
