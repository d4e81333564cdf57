#!/usr/bin/env bash
# Puts a device through small checks with a built `blockformer`: everything that `self-check` knows, some reference cases,
# generation, and training steps, the last two beside the CPU.
#   scripts/check-device.sh PROGRAM DEVICE        # target/release/blockformer cuda:0
#   CASES="lookup_prefix_b4 megabyte_b4"          # which cases; or all
# test-wgpu.sh and test-emulated-cuda.sh run it on software devices.
set -euo pipefail
program=$(realpath "${1:?the built blockformer}")
device=${2:?a device, such as cuda:0}
cd "$(dirname "$0")/.."
cases=${CASES:-vanilla_llama_grouped_query lookup_projection_prefix_b7 cls_cross_attention_b4}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() { echo "check-device: $*" >&2; exit 1; }
step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }

step "self-check on $device"
"$program" self-check --device "$device"

step "reference cases on $device"
if [ "$cases" = all ]; then
    "$program" verify tests/reference-cases --device "$device"
else
    for case in $cases; do "$program" verify "tests/reference-cases/$case" --device "$device"; done
fi

step "generation of the bundled model, by a captured graph where the device can, the same text as on the CPU"
sentence="The people of the United States"
generate() { "$program" generate --prompt "$sentence" --max-new-tokens 76 --temperature 0 --recorded true --device "$1"; }
generate cpu > "$scratch/cpu"
generate "$device" > "$scratch/device"
cat "$scratch/device"
cmp "$scratch/cpu" "$scratch/device" || fail "the texts differ"

step "training steps, the same losses as on the CPU"
for _ in $(seq 400); do echo "the quick brown fox jumps over the lazy dog"; done > "$scratch/text.txt"
layers='{"d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64,
    "activation": "silu", "gated": true, "norm": "rms_norm", "norm_eps": 1e-5, "residual": "sequential",
    "rotary": {"fraction": 1.0, "base": 10000.0}, "qkv_bias": false, "output_bias": false,
    "feed_forward_bias": false, "max_positions": 64, "initializer_range": 0.02}'
cat > "$scratch/config.json" <<JSON
{"architecture": "block_transformer", "vocab_size": 32, "block_length": 4, "n_embedding_tokens": 1,
 "max_length": 64, "pad_token_id": 0, "eos_token_id": 0, "random_pad_first_block": true, "pad_to_block_boundary": true,
 "embedder": {"kind": "lookup", "d_embedding": 8, "projection": "concat"}, "block_decoder": $layers,
 "token_decoder": {"kind": "prefix", "transformer": $layers, "expansion": "layer", "expansion_ratio": 2,
                   "tied_embeddings": true}}
JSON
train() { # OUTPUT DEVICE STEPS, then where weights come from
    "$program" train --data "$scratch/text.txt" --tokenizer characters --output "$scratch/$1" --device "$2" --steps "$3" \
        --validation-split tail --batch-size 2 --sample-length 32 --learning-rate 0.01 --warmup-steps 1 --evaluate-every 100 --log-every 1 "${@:4}"
}
train start cpu 1 --config "$scratch/config.json"
train on_cpu cpu 3 --init "$scratch/start"
train on_device "$device" 3 --init "$scratch/start"
paste -d, "$scratch/on_cpu/metrics.csv" "$scratch/on_device/metrics.csv" | awk -F, '
    NR == 1 { for (i = 1; i <= NF / 2; i++) if ($i == "loss") loss = i; half = NF / 2; next }
    { print "loss on the CPU " $loss ", on the device " $(loss + half)
      difference = $loss - $(loss + half); if (difference < 0) difference = -difference
      if (!loss || !(difference <= 1e-4 * $loss)) bad = 1 }
    END { exit bad || NR < 4 }' || fail "the losses differ"

step done
