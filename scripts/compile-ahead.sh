#!/usr/bin/env bash
# Compiles the kernels that a command will need on an NVIDIA GPU, on a machine that has none, and leaves them in a directory to be
# carried along. Where the GPU is, nothing of it is compiled again:
#   CUBECL_ENVIRONMENT=ahead BLOCKFORMER_KERNEL_CACHE=DIRECTORY PROGRAM ARGUMENTS...
#
#   EMULATED_CUDA_NVRTC=…/libnvrtc.so.12 CUDA_PATH=… scripts/compile-ahead.sh DIRECTORY PROGRAM ARGUMENTS...
#   … scripts/compile-ahead.sh kernels target/cuda/release/blockformer bench --device cuda:0 --model block_main_b4_300 --precision bf16
#
# The command runs on the emulated device of scripts/emulated-cuda, which does nothing and tries every kernel that the tuner knows for such a
# GPU; its results mean nothing, and no time that it takes is kept. The program must be the very file that is carried, built by
# check-cuda.sh (docs/gpu.md says why). For another
# GPU than an H100 or H200: CAPABILITY=80 MULTIPROCESSORS=108 (an A100). NVRTC is NVIDIA's compiler of kernels, with its headers (Python
# packages nvidia-cuda-nvrtc-cu12, -runtime-cu12, -cccl-cu12, for CUDA_PATH). It needs g++ on x86-64.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,/^set/p' "$0" | sed '$d'; exit 1; }
sources=$(realpath "$(dirname "$0")/emulated-cuda")
directory=$1 program=$2
shift 2
nvrtc=$(realpath "${EMULATED_CUDA_NVRTC:?which libnvrtc.so}")
[ -d "${CUDA_PATH:?where CUDA is}/include" ] || { echo "compile-ahead: $CUDA_PATH has no include" >&2; exit 1; }
mkdir -p "$directory"
directory=$(realpath "$directory")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$sources/build.sh" "$work"
capability=${CAPABILITY:-90}
# What was measured here is nobody's time.
status=0
env LD_LIBRARY_PATH="$work:$(dirname "$nvrtc")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" EMULATED_CUDA_NVRTC="$nvrtc" \
    EMULATED_CUDA_IDLE=1 EMULATED_CUDA_ONLY_NVRTC=1 EMULATED_CUDA_CAPABILITY="$capability" \
    EMULATED_CUDA_MULTIPROCESSORS="${MULTIPROCESSORS:-132}" EMULATED_CUDA_MEMORY="${MEMORY:-80}" \
    EMULATED_CUDA_KERNELS="$work" EMULATED_CUDA_HEADER="$sources/kernel.h" \
    CUBECL_ENVIRONMENT=ahead CUBECL_AUTOTUNE_CACHE=0 CUBECL_THROUGHPUT_CACHE=0 BLOCKFORMER_KERNEL_CACHE="$directory" "$program" "$@" || status=$?
echo "compile-ahead: $(find "$work" -name '*.cubin' | wc -l) kernels for compute capability $capability compiled, $(du -sh "$directory" | cut -f1) in $directory"
exit "$status"
