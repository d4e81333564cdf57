#!/usr/bin/env bash
# Trains a vanilla and a Block Transformer of equal non-embedding parameters on the characters of a text, the last
# tenth of which is for validation.
#   scripts/train-shakespeare.sh TEXT [vanilla|block] [OUTPUT]
# TEXT is tinyshakespeare, as in https://github.com/karpathy/char-rnn.
set -euo pipefail
text=$(realpath "$1") kind=${2:-vanilla}
cd "$(dirname "$0")/.."
output=${3:-data/shakespeare-$kind}
export MIMALLOC_PURGE_DELAY=-1
${BLOCKFORMER:-cargo run --release -p blockformer-cli --} train \
  --data "$text" --tokenizer characters --config "configs/shakespeare-$kind.json" --output "$output" \
  --validation-split tail --validation-share 0.1 --steps 1500 --batch-size 32 --learning-rate 3e-3 \
  --warmup-steps 100 --evaluate-every 250 --evaluation-samples 200 --resume
