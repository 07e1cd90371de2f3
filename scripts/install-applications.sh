#!/bin/sh
# Installs what the applications in tests/node/applications are made of below target/: egg, express,
# fastify, gRPC, hapi, hono, koa, log4js, moleculer, NestJS, prom-client, socket.io, throng and ws,
# in the versions of its package-lock.json. They take 125 MB.
#
#     scripts/install-applications.sh
#
# Nothing outside target/ is touched. Without it the tests of applications say that they test
# nothing.
set -eu

cd "$(dirname "$0")/.."
source=tests/node/applications
folder=target/node-applications

if ! cmp -s "$source/package-lock.json" "$folder/package-lock.json"; then
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$source/package.json" "$source/package-lock.json" "$folder/"
    npm ci --prefix "$folder" --no-audit --no-fund --ignore-scripts --loglevel error || {
        # Half an installation would be taken for a whole one.
        rm -rf "$folder"
        exit 1
    }
fi
echo "$folder has egg, express, fastify, gRPC, hapi, hono, koa, NestJS, socket.io and others"
