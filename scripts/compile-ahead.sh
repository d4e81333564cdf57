#!/usr/bin/env bash
# Compiles the kernels that a command will need on an NVIDIA GPU, on a machine that has none, and leaves them in a directory to be
# carried along. Where the GPU is, nothing of it is compiled again:
#   CUBECL_ENVIRONMENT=ahead BLOCKFORMER_COMPILED_KERNELS=1 BLOCKFORMER_KERNEL_CACHE=DIRECTORY PROGRAM ARGUMENTS...
#
#   EMULATED_CUDA_NVRTC=…/libnvrtc.so.12 CUDA_PATH=… scripts/compile-ahead.sh DIRECTORY PROGRAM ARGUMENTS...
#   … scripts/compile-ahead.sh kernels target/cuda/release/blockformer bench --device cuda:0 --model block_main_b4_300 --precision bf16
#
# The command runs on the emulated device of scripts/emulated-cuda, which does nothing and tries every kernel that the tuner knows for such a
# GPU; its results mean nothing, and no time that it takes is kept. The program must be the very file that is carried, built by
# check-cuda.sh (docs/gpu.md says why), and is run again until nothing is left to compile. For another GPU than an
# H100 SXM or H200: CAPABILITY=80 MULTIPROCESSORS=108 (an A100). NVRTC is NVIDIA's compiler of kernels, with its headers (Python packages
# nvidia-cuda-nvrtc-cu12, -runtime-cu12, -cccl-cu12, for CUDA_PATH), and not to be newer than the driver there. It needs g++ on x86-64.
# SOURCES=DIRECTORY keeps CubeCL's CUDA C++, PTX and what was compiled.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,/^set/p' "$0" | sed '$d'; exit 1; }
fail() { echo "compile-ahead: $*" >&2; exit 1; }
scripts=$(realpath "$(dirname "$0")/emulated-cuda")
directory=$1 program=$2
shift 2
nvrtc=$(realpath "${EMULATED_CUDA_NVRTC:?which libnvrtc.so}")
[ -r "$nvrtc" ] || fail "cannot read $nvrtc"
[ -d "${CUDA_PATH:?where CUDA is}/include" ] || fail "$CUDA_PATH has no include"
mkdir -p "$directory"
directory=$(realpath "$directory")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sources=${SOURCES:-$work/kernels}
mkdir -p "$sources"
"$scripts/build.sh" "$work"
capability=${CAPABILITY:-90}

# What was measured here is nobody's time.
run() { # WHERE KERNELS GO, and the command
    env -u EMULATED_CUDA_NVRTC_ARCH -u EMULATED_CUDA_ORDER -u EMULATED_CUDA_GRAPHS -u EMULATED_CUDA_LOG -u EMULATED_CUDA_STREAMS \
        LD_LIBRARY_PATH="$work:$(dirname "$nvrtc")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" EMULATED_CUDA_NVRTC="$nvrtc" \
        EMULATED_CUDA_IDLE=1 EMULATED_CUDA_ONLY_NVRTC=1 EMULATED_CUDA_CAPABILITY="$capability" \
        EMULATED_CUDA_MULTIPROCESSORS="${MULTIPROCESSORS:-132}" EMULATED_CUDA_MEMORY="${MEMORY:-80}" \
        EMULATED_CUDA_KERNELS="$1" EMULATED_CUDA_HEADER="$scripts/kernel.h" \
        CUBECL_ENVIRONMENT=ahead CUBECL_AUTOTUNE_CACHE=0 CUBECL_THROUGHPUT_CACHE=0 \
        BLOCKFORMER_COMPILED_KERNELS=1 BLOCKFORMER_KERNEL_CACHE="$directory" "${@:2}"
}
started=$SECONDS status=0
run "$sources" "$program" "$@" || status=$?
taken=$((SECONDS - started))
# What is tried depends a little on time.
for again in 1 2 3 4; do
    mkdir "$work/$again"
    run "$work/$again" "$program" "$@" > "$work/output" 2>&1 || true
    left=$(find "$work/$again" -name '*.cu' | wc -l)
    [ "$left" -gt 0 ] || break
done
[ "$left" -eq 0 ] || fail "$left kernels were not kept: was $program built by check-cuda.sh?"
echo "compile-ahead: $(find "$sources" -name '*.cubin' | wc -l) kernels for compute capability $capability compiled in $taken s, $(du -sh "$directory" | cut -f1) in $directory"
exit "$status"
