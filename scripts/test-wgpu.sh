#!/usr/bin/env bash
# Builds the `blockformer` command for any GPU (WGSL shaders) and puts a software device through small checks: the kernels
# of blockformer-cubecl, everything that `self-check` knows, the smallest reference cases, generation, and training steps. No GPU is needed:
#   apt-get install mesa-vulkan-drivers libvulkan1     # Mesa's lavapipe, a Vulkan device on the CPU
#   scripts/test-wgpu.sh
# The build takes 20 minutes on two cores, the checks 30: most of it is the tuning of kernels. Further
# reference cases can be named: CASES="lookup_prefix_b4 megabyte_b4" scripts/test-wgpu.sh, or CASES=all.
# Feature `vulkan` (SPIR-V) is no choice here: it runs into an invalid address inside lavapipe.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${BLOCKFORMER_TEST_DEVICE:-wgpu:0}
cases=${CASES:-vanilla_llama_grouped_query lookup_projection_prefix_b7 cls_cross_attention_b4}

fail() { echo "test-wgpu: $*" >&2; exit 1; }
step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }

# Where there is no GPU, wgpu takes lavapipe by itself; where there is one, this makes it take lavapipe all the same.
lavapipe=$(find /usr/share/vulkan/icd.d -name 'lvp_icd*.json' 2>/dev/null | head -n 1)
if [ -z "${BLOCKFORMER_TEST_DEVICE:-}" ]; then
    [ -n "$lavapipe" ] || fail "no lavapipe: apt-get install mesa-vulkan-drivers libvulkan1"
    export VK_DRIVER_FILES=$lavapipe VK_ICD_FILENAMES=$lavapipe
fi

# All in one feature set: Burn is compiled once.
packages=(-p blockformer-cli -p blockformer-cubecl -p blockformer --features wgpu)
step build
cargo build "${packages[@]}"
program=$(realpath "${CARGO_TARGET_DIR:-target}/debug/blockformer")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step "kernels against float64, decoding with them against the host's, and what a step launches"
BLOCKFORMER_TEST_DEVICE=$device cargo test "${packages[@]}" --test kernels --test gpu_decode --test gpu_launches

step "self-check on $device"
"$program" self-check --device "$device"

step "reference cases on $device"
if [ "$cases" = all ]; then
    "$program" verify tests/reference-cases --device "$device"
else
    for case in $cases; do "$program" verify "tests/reference-cases/$case" --device "$device"; done
fi

step "generation of the bundled model, the same text as on the CPU"
sentence="The people of the United States"
generate() { "$program" generate --prompt "$sentence" --max-new-tokens 12 --temperature 0 --device "$1"; }
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
