#!/usr/bin/env bash
# The loss of the bundled model in each precision, on the documents of its corpus that were kept from training.
#   scripts/loss-by-precision.sh [OUTPUT]
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-data/loss-by-precision}
[ -d data/bundled-corpus ] || scripts/fetch-corpus.sh data/bundled-corpus
run=${BLOCKFORMER:-cargo run --release -p blockformer-cli --}
mkdir -p "$output"
# The choice that `train` makes with its seed of 0 and a share of 5 %.
python3 - "$output/held-out.jsonl" data/bundled-corpus/*.jsonl <<'PYTHON'
import sys

BITS = (1 << 64) - 1


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & BITS
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & BITS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & BITS
    return x ^ (x >> 31)


documents = [line for path in sys.argv[2:] for line in open(path) if line.strip()]
seed = mix(0x9E3779B97F4A7C15)
order = sorted(range(len(documents)), key=lambda index: (mix((seed + index) & BITS), index))
with open(sys.argv[1], "w") as file:
    file.writelines(documents[index] for index in sorted(order[: round(0.05 * len(documents))]))
PYTHON
for precision in plain f32 bf16 int8 int4; do
  # shellcheck disable=SC2086 # the command may be several words
  $run evaluate --text "$output/held-out.jsonl" --precision "$precision" --output "$output/$precision" > "$output/$precision.txt"
done
python3 - "$output" <<'PYTHON'
import json
import sys

print("| weights | nats a token | beside plain operations |\n| --- | ---: | ---: |")
losses = {}
for precision in ("plain", "f32", "bf16", "int8", "int4"):
    losses[precision] = json.load(open(f"{sys.argv[1]}/{precision}/results.json"))["text"]["loss"]
    print(f"| {precision} | {losses[precision]:.5f} | {100 * (losses[precision] / losses['plain'] - 1):+.3f} % |")
PYTHON
