#!/usr/bin/env bash
# Times matrix products of this library and of PyTorch in turn; see scripts/matmul_beside_pytorch.py for the options.
#   PYTHON=python3.11 scripts/matmul-beside-pytorch.sh OUTPUT.csv [OPTIONS]
# The Python must have PyTorch: the published figures are of torch 2.5.1 with numpy below 2.
set -euo pipefail
output=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."
cargo build --release -p blockformer-kernels --example time_products
OMP_WAIT_POLICY=passive "${PYTHON:-python3}" scripts/matmul_beside_pytorch.py \
    "$(realpath "${CARGO_TARGET_DIR:-target}/release/examples/time_products")" "$output" "$@"
