#!/usr/bin/env bash
# Peak memory and time a step of training, with what saves memory switched on and off: each a process of its own.
#   scripts/measure-memory.sh [OUTPUT]
# The model is that of configs/bundled.json with four layers in each decoder, its tokenizer the bundled one, the text
# the project's own documents; 8 samples of 512 tokens a step, in float32. Needs GNU time.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-data/memory} steps=${STEPS:-6}
run=${BLOCKFORMER:-cargo run --release -p blockformer-cli --}
mkdir -p "$output"
# Twice: the steps take more than there is once.
cat docs/*.md docs/results/*.md README.md crates/*/README.md > "$output/once.txt"
cat "$output/once.txt" "$output/once.txt" > "$output/text.txt"
sed 's/"n_layers": [0-9]*/"n_layers": 4/' configs/bundled.json > "$output/config.json"
printf '| options | peak resident memory | seconds a step |\n| --- | --- | --- |\n'
for options in "" "--gradient-checkpointing" "--recompute" "--recompute --gradient-checkpointing" "--accumulation 8"; do
  rm -rf "$output/run"
  # shellcheck disable=SC2086 # the options are words
  /usr/bin/time -f %M -o "$output/peak" $run train --data "$output/text.txt" --output "$output/run" \
    --tokenizer crates/blockformer/model/tokenizer.json --config "$output/config.json" --validation-split tail \
    --steps "$steps" --batch-size 8 --warmup-steps 2 --evaluate-every "$steps" --save-every "$steps" $options \
    2> "$output/log" || { cat "$output/log" >&2; exit 1; }
  # Without the first step, which finds its memory.
  seconds=$(awk -F, 'NR > 2 { sum += ($2 - last) / $9; n++ } { last = $2 } END { printf "%.2f", sum / n }' "$output/run/metrics.csv")
  printf '| %s | %d MiB | %s |\n' "${options:-none}" "$(($(cat "$output/peak") / 1024))" "$seconds"
done
