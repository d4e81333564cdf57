#!/usr/bin/env bash
# Trains a small model with this library and with the authors' implementation, from the same weights on the same
# batches by the same schedule, and compares losses and speed. Alternates between the two, RUNS times.
#   REFERENCE_PATH=checkout PYTHON=python3.11 scripts/train-beside-reference.sh TEXT OUTPUT [STEPS] [BATCH] [RUNS]
# TEXT is one long document. See scripts/train_reference.py for what the Python must have.
set -euo pipefail
text=$(realpath "$1") output=$(realpath -m "$2") steps=${3:-200} batch=${4:-8} runs=${5:-1}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export MIMALLOC_PURGE_DELAY=-1 OMP_WAIT_POLICY=passive
cargo build --release -p blockformer-examples --example train_beside_reference
ours=${CARGO_TARGET_DIR:-target}/release/examples/train_beside_reference
"$python" scripts/train_reference.py make "$output/model"
results=()
for run in $(seq "$runs"); do
  "$ours" "$output/model" "$text" "$output/run-$run" "$steps" "$batch"
  "$python" scripts/train_reference.py train "$output/model" "$output/run-$run"
  results+=("$output/run-$run")
done
"$python" scripts/train_reference.py compare "${results[@]}"
