#!/usr/bin/env bash
# Runs the CUDA build on a machine without a GPU. A driver and a compiler of kernels stand in for NVIDIA's (emulated-cuda):
# CubeCL generates CUDA C++ for a device of compute capability 7.5 without tensor cores, lays tensors out and launches as it
# would there, and the kernels are compiled by g++ and run on the CPU, barriers and exchanges in warps included. This shows wrong
# results, not speed. Kernels that use tensor cores or copies in the background cannot run; the tuner leaves them out.
#   scripts/test-emulated-cuda.sh [kernels|large|decoding|device|kept|report|host]...      # kernels, decoding, device and kept if none is named
# kept asks whether what was tuned and compiled is kept for the next process; large has tensors of 8 GiB, which hardly touch memory; report makes all sections of `gpu-report`; host times what the host does for a token, with kernels that do nothing.
# It needs g++ 12 or newer on x86-64. The build takes 25 minutes on two cores.
#
# With NVIDIA's NVRTC (Python packages nvidia-cuda-nvrtc-cu12, -runtime-cu12, -cccl-cu12, for CUDA_PATH), every kernel is compiled by it, too:
#   EMULATED_CUDA_NVRTC=…/libnvrtc.so.12 CUDA_PATH=… EMULATED_CUDA_NVRTC_ARCH=sm_90a scripts/test-emulated-cuda.sh
# and with EMULATED_CUDA_ORDER=reversed threads run from the last to the first, which shows many missing barriers; with EMULATED_CUDA_STREAMS=late streams do nothing before somebody waits for them. More settings are
# explained at the head of driver.cpp.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
target=$(realpath -m "${CARGO_TARGET_DIR:-target/cuda}")
work=$target/emulated
parts=("$@")
[ $# -gt 0 ] || parts=(kernels decoding device kept)

for part in "${parts[@]}"; do
    case $part in kernels | large | decoding | device | kept | report | host) ;; *) echo "test-emulated-cuda: no part $part" >&2; exit 1 ;; esac
done

step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }

step build
mkdir -p "$work/kernels"
scripts/emulated-cuda/build.sh "$work"
CARGO_TARGET_DIR=$target scripts/check-cuda.sh build

emulated() {
    env LD_LIBRARY_PATH="$work${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" CUDA_PATH="${CUDA_PATH:-/usr/local/cuda}" \
        EMULATED_CUDA_KERNELS="$work/kernels" EMULATED_CUDA_HEADER="$root/scripts/emulated-cuda/kernel.h" \
        CUBECL_AUTOTUNE_CACHE="${TUNING_KEPT:-0}" CUBECL_THROUGHPUT_CACHE="${TUNING_KEPT:-0}" \
        BLOCKFORMER_KERNEL_CACHE="${BLOCKFORMER_KERNEL_CACHE:-off}" "$@"
}
tests() { # TEST [NAME OF ONE IN IT]
    local built
    built=$(CARGO_TARGET_DIR=$target scripts/check-cuda.sh test -p blockformer-cubecl -p blockformer --no-run --test "$1" 2>&1 |
        tee >(cat >&2) | sed -n 's/.*Executable .* (\(.*\))$/\1/p')
    BLOCKFORMER_TEST_DEVICE=cuda:0 emulated "$built" "${@:2}"
}

for part in "${parts[@]}"; do
    step "$part"
    case $part in
        kernels) tests kernels ;;
        large) EMULATED_CUDA_MEMORY=40 tests kernels --ignored ;;
        decoding)
            tests gpu_decode
            tests gpu_launches
            # With streams that do nothing before somebody waits for them.
            EMULATED_CUDA_STREAMS=late tests gpu_decode thread
            # And where no graph can be made of what was captured.
            EMULATED_CUDA_GRAPHS=0 BLOCKFORMER_TEST_NO_GRAPHS=1 tests gpu_decode repeated record
            # Or of the first few alone: of what is recorded ahead, and of what comes up later.
            for graphs in 1 7 9 12; do
                EMULATED_CUDA_GRAPHS=$graphs BLOCKFORMER_TEST_NO_GRAPHS=1 tests gpu_decode a_capture_that_fails
            done
            ;;
        device) emulated scripts/check-device.sh "$target/debug/blockformer" cuda:0 ;;
        kept)
            kept=$(mktemp -d "$work/kept.XXXXXX")
            generate() { # WHERE KERNELS ARE KEPT, DEVICE, and what stands before the command
                TUNING_KEPT=1 BLOCKFORMER_KERNEL_CACHE="$1" emulated "${@:3}" "$target/debug/blockformer" generate --device "$2" \
                    --prompt "The people of the United States" --max-new-tokens 36 --temperature 0
            }
            same() { for text in "$@"; do cmp "$kept/cpu" "$kept/$text"; done; }
            generate off cpu > "$kept/cpu"
            # What one process has tuned, the next need not: most launches were those of the tuner.
            for run in first second; do generate "$kept/tuned" cuda:0 env EMULATED_CUDA_LOG="$kept/$run.log" > "$kept/$run"; done
            same first second
            wc -l "$kept"/*.log
            [ $(($(wc -l < "$kept/second.log") * 3)) -lt "$(wc -l < "$kept/first.log")" ]
            # What one has compiled, neither: here it could not.
            generate "$kept/compiled" cuda:0 env BLOCKFORMER_COMPILED_KERNELS=1 > "$kept/first"
            generate "$kept/compiled" cuda:0 env BLOCKFORMER_COMPILED_KERNELS=1 EMULATED_CUDA_KERNELS=/dev/null/none > "$kept/second"
            same first second
            # Two at once.
            generate "$kept/both" cuda:0 > "$kept/first" & generate "$kept/both" cuda:0 > "$kept/second"
            wait $!
            same first second
            # And nothing is kept where it is off: neither there nor where CubeCL keeps things by itself.
            mkdir "$kept/empty"
            (cd "$kept/empty" && generate off cuda:0 env XDG_CACHE_HOME="$kept/empty" HOME="$kept/empty" > "$kept/first")
            same first
            grep -rqa autotune "$kept/tuned"
            if grep -rqaE 'autotune|ptx' "$kept/empty"; then echo "test-emulated-cuda: something was kept" >&2; exit 1; fi
            ls -l "$kept/tuned" "$kept/compiled"
            rm -r "$kept"
            ;;
        report)
            emulated "$target/debug/blockformer" gpu-report --device cuda:0 --out "$work/report.json" --scale 32 --most-sequences 1 \
                --sections device,limits,throughput,training --presets block_main_b4_5 --training-presets block_main_b4_5 --precision f32
            ;;
        host)
            for model in block_main_b4_300 vanilla_410; do
                for recorded in false true; do
                    echo "recorded $recorded:"
                    EMULATED_CUDA_IDLE=1 EMULATED_CUDA_ONLY_NVRTC=1 emulated "$target/debug/blockformer" bench --device cuda:0 --model "$model" \
                        --precision bf16 --prompt-tokens 128 --new-tokens 1600 --repeats 1 --recorded "$recorded"
                done
            done
            ;;
    esac
done
step done
