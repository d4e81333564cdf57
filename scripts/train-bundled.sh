#!/usr/bin/env bash
# Trains the bundled model: about an hour on two cores. Rebuilds its corpus first if need be. To put the result into
# the program, copy its config.json, model.safetensors, tokenizer.json and loss.svg to crates/blockformer/model.
#   scripts/train-bundled.sh [OUTPUT]
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-data/bundled-run}
[ -d data/bundled-corpus ] || scripts/fetch-corpus.sh data/bundled-corpus
# Without this the allocator gives memory back to the system after every step, which costs a fifth of the speed.
export MIMALLOC_PURGE_DELAY=-1
${BLOCKFORMER:-cargo run --release -p blockformer-cli --} train \
  --data data/bundled-corpus --tokenizer bpe:4096 --config configs/bundled.json --output "$output" \
  --steps 2200 --batch-size 8 --learning-rate 2e-3 --warmup-steps 100 \
  --evaluate-every 200 --save-every 200 --precision f16 --resume
