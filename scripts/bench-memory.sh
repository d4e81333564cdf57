#!/usr/bin/env bash
# Peak memory of loading and of generation beside what is stated: weights, keys and values, and working buffers.
#   scripts/bench-memory.sh OUTPUT [OPTIONS of `blockformer bench`]
# Every model and precision in a process of its own. Large pages are kept to the weights: the allocator would hold on to
# whole ones for little else. (They help training, so that it is not the program's default.)
set -euo pipefail
output=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."
cargo build --release -p blockformer-cli
program=$(realpath "${CARGO_TARGET_DIR:-target}/release/blockformer")
mkdir -p "$output"
rm -f "$output/memory.csv"
for model in ${MODELS:-block_main_b4_19 block_main_b4_85}; do
  for precision in ${PRECISIONS:-f32 int8}; do
    MIMALLOC_ALLOW_THP=${MIMALLOC_ALLOW_THP:-0} "$program" bench --model "$model" --precision "$precision" \
      --batch 1,32 --scale 16 --repeats 2 --out "$output/$model-$precision" "$@"
    table="$output/$model-$precision/bench.csv"
    [ -f "$output/memory.csv" ] || head -n 1 "$table" > "$output/memory.csv"
    tail -n +2 "$table" >> "$output/memory.csv"
  done
done
