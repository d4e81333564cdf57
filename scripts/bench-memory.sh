#!/usr/bin/env bash
# Peak memory of loading and of generation beside what is stated: weights, keys and values, and working buffers.
#   scripts/bench-memory.sh OUTPUT [OPTIONS of `blockformer bench`]
# Every cell in a process of its own: the allocator keeps some of what an earlier one took. It is told to give back at once what
# was freed (by default it waits a second), and large pages are kept to the weights: it would hold on to whole ones for
# little else. (Large pages help training; neither is the program's default.)
# MODELS can also name model directories.
set -euo pipefail
output=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."
program=${BLOCKFORMER:-}
if [ -z "$program" ]; then
  cargo build --release -p blockformer-cli
  program=$(realpath "${CARGO_TARGET_DIR:-target}/release/blockformer")
fi
mkdir -p "$output"
rm -f "$output/memory.csv"
for model in ${MODELS:-block_main_b4_19 block_main_b4_85}; do
  for precision in ${PRECISIONS:-f32 int8}; do
    for workload in prefill-heavy decode-heavy; do
      for batch in ${BATCHES:-1 32}; do
        MIMALLOC_ALLOW_THP=${MIMALLOC_ALLOW_THP:-0} MIMALLOC_PURGE_DELAY=${MIMALLOC_PURGE_DELAY:-0} \
          "$program" bench --model "$model" --precision "$precision" --workload "$workload" --batch "$batch" --scale 16 --repeats 2 --out "$output/run" "$@"
        [ -f "$output/memory.csv" ] || head -n 1 "$output/run/bench.csv" > "$output/memory.csv"
        tail -n +2 "$output/run/bench.csv" >> "$output/memory.csv"
      done
    done
  done
done
