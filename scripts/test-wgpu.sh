#!/usr/bin/env bash
# Builds the `blockformer` command for any GPU (WGSL shaders) and puts a software device through small checks: the kernels
# of blockformer-cubecl, everything that `self-check` knows, the smallest reference cases, generation, and training steps. No GPU is needed:
#   apt-get install mesa-vulkan-drivers libvulkan1     # Mesa's lavapipe, a Vulkan device on the CPU
#   scripts/test-wgpu.sh
# The build takes 20 minutes on two cores, the checks 30: most of it is the tuning of kernels. Further
# reference cases can be named: CASES="lookup_prefix_b4 megabyte_b4" scripts/test-wgpu.sh, or CASES=all (check-device.sh).
# Feature `vulkan` (SPIR-V) is no choice here: it runs into an invalid address inside lavapipe.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${BLOCKFORMER_TEST_DEVICE:-wgpu:0}

fail() { echo "test-wgpu: $*" >&2; exit 1; }
step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }

# Where there is no GPU, wgpu takes lavapipe by itself; where there is one, this makes it take lavapipe all the same.
lavapipe=$(find /usr/share/vulkan/icd.d -name 'lvp_icd*.json' 2>/dev/null | head -n 1)
if [ -z "${BLOCKFORMER_TEST_DEVICE:-}" ]; then
    [ -n "$lavapipe" ] || fail "no lavapipe: apt-get install mesa-vulkan-drivers libvulkan1"
    export VK_DRIVER_FILES=$lavapipe VK_ICD_FILENAMES=$lavapipe
fi

# Each run tunes anew: what was the fastest the last time is not all that is to be tested.
export CUBECL_AUTOTUNE_CACHE=0 CUBECL_THROUGHPUT_CACHE=0 BLOCKFORMER_KERNEL_CACHE=off
# All in one feature set: Burn is compiled once.
packages=(-p blockformer-cli -p blockformer-cubecl -p blockformer --features wgpu)
step build
cargo build "${packages[@]}"

step "kernels against float64, decoding with them against the host's, and what a step launches"
BLOCKFORMER_TEST_DEVICE=$device cargo test "${packages[@]}" --test kernels --test gpu_decode --test gpu_launches

scripts/check-device.sh "${CARGO_TARGET_DIR:-target}/debug/blockformer" "$device"
