#!/usr/bin/env bash
# Times generation by this library and by the authors' implementation in turn, with the same weights and token ids.
#   REFERENCE_PATH=checkout PYTHON=python3.11 scripts/bench-beside-reference.sh OUTPUT [OPTIONS]
# See scripts/bench_reference.py for the options, and scripts/reference_model.py for what the Python must have.
set -euo pipefail
output=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."
cargo build --release -p blockformer-cli
OMP_WAIT_POLICY=passive "${PYTHON:-python3}" scripts/bench_reference.py \
    "$(realpath "${CARGO_TARGET_DIR:-target}/release/blockformer")" "$output" "$@"
