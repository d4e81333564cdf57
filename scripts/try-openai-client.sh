#!/usr/bin/env bash
# Starts the HTTP service with the bundled model and calls it with the official OpenAI client for Python, which is
# installed from PyPI into a virtual environment that is removed again. Ends with an error if anything is not as expected.
#   scripts/try-openai-client.sh
# BLOCKFORMER_SERVICE: a service that is built already; PYTHON: the interpreter, 3.9 or newer.
set -euo pipefail
cd "$(dirname "$0")/.."
client=openai==3.57.0
service=${BLOCKFORMER_SERVICE:-}
if [[ -z $service ]]; then
  cargo build --release -p blockformer-http-service
  service=${CARGO_TARGET_DIR:-target}/release/blockformer-http-service
fi

. scripts/trying.sh
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check "$client"

"$service" --port 0 --max-batch 8 --max-waiting 16 >"$scratch/output" &
pid=$!
found 's/^listening on //p' 60

"$scratch/venv/bin/python" scripts/try-openai-client.py "$found"

kill -TERM "$pid"
wait "$pid"
pid=
echo "the service stopped when it was told to"
