#!/usr/bin/env bash
# Builds the `blockformer` command for NVIDIA GPUs on a machine without one, and where GitHub cannot be reached.
#   scripts/check-cuda.sh [build|check|clippy|doc] [FURTHER OPTIONS OF CARGO]
#
# With --workspace among the options, all crates instead of the command alone; CI runs clippy so.
#
# Burn's CUDA backend depends on cubecl-llvm, whose build script downloads LLVM from GitHub. Here a stand-in takes its
# place (scripts/cubecl-llvm-stub): kernels are compiled by NVRTC, which the program loads when it runs; so it runs
# on any machine with NVIDIA's driver, NVRTC and CUDA's headers (CUDA_PATH). The manifests of this repository stay as
# they are: the build happens in a copy, which alone is patched. With a way to GitHub none of this is needed:
#   cargo build --release -p blockformer-cli --features cuda
set -euo pipefail
cd "$(dirname "$0")/.."
verb=${1:-build}
shift || true
version=0.11.3
target=$(realpath -m "${CARGO_TARGET_DIR:-target/cuda}")
copy=$target/nvrtc-workspace
patches=$target/nvrtc-patches fresh=$target/nvrtc-patches-fresh

fail() { echo "check-cuda: $*" >&2; exit 1; }

# The copy keeps the files' times, so that what has not changed is not built again.
mkdir -p "$copy"
find "$copy" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
files() {
    if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
        git ls-files -z --cached --others --exclude-standard -- . ':!tests/reference-cases' ':!docs'
    else # a copy that is no checkout
        find . -path ./.git -prune -o -path './target*' -prune -o -path ./data -prune -o -path ./docs -prune -o -path ./tests/reference-cases -prune \
            -o -type f -printf '%P\0'
    fi
}
files | while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
    tar --null --files-from=- --create | tar --extract --directory "$copy"

cargo fetch --quiet --manifest-path Cargo.toml
sources=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/)
published() {
    for source in "${sources[@]}"; do
        if [ -d "$source/$1-$version" ]; then echo "$source/$1-$version"; return; fi
    done
    fail "$1 $version is not among the downloaded crates: does Cargo.lock have another version?"
}
llvm=$(published cubecl-llvm)
cuda=$(published cubecl-cuda)
macros=$(published cubecl-macros)

# The stand-in, with two modules of the crate it stands for.
rm -rf "$fresh"
mkdir -p "$fresh"
cp -rp scripts/cubecl-llvm-stub "$fresh/cubecl-llvm"
mkdir -p "$fresh/cubecl-llvm/src/nvptx" "$fresh/cubecl-llvm/src/shared"
cp -p "$llvm/src/nvptx/ptx_version.rs" "$fresh/cubecl-llvm/src/nvptx/"
cp -p "$llvm/src/shared/lowered_features.rs" "$fresh/cubecl-llvm/src/shared/"
cp -rp "$cuda" "$fresh/cubecl-cuda"
# From Ampere on, CubeCL lets its autotuner round float32 products to TF32, and has no switch. Here BLOCKFORMER_TF32=0 is one.
sed -i -z 's/device_props\s*\.register_type_usage(ElemType::Float(FloatKind::TF32), TypeUsage::Conversion);/if std::env::var_os("BLOCKFORMER_TF32").is_none_or(|value| value != "0") { & }/' \
    "$fresh/cubecl-cuda/src/runtime.rs"
grep -q BLOCKFORMER_TF32 "$fresh/cubecl-cuda/src/runtime.rs" || fail "cubecl-cuda's runtime is not what it was"
# Kernels that differ in which case of an enum they were given have one hash, by which compiled ones would be kept (docs/gpu.md).
cp -rp "$macros" "$fresh/cubecl-macros"
enums=$fresh/cubecl-macros/src/generate/cube_type/generate_enum.rs
sed -i 's/^\( *\)#body_hash;$/\1core::hash::Hash::hash(\&core::mem::discriminant(self), state);\n&/' "$enums"
grep -q 'discriminant(self), state' "$enums" || fail "cubecl-macros is not what it was"
# What is the same keeps its time, so that it is not built again; what is not is new.
diff -rq "$fresh" "$patches" > /dev/null 2>&1 || { rm -rf "$patches"; cp -r "$fresh" "$patches"; }
rm -rf "$fresh"
cat >> "$copy/Cargo.toml" <<PATCH

[patch.crates-io]
cubecl-llvm = { path = "$patches/cubecl-llvm" }
cubecl-cuda = { path = "$patches/cubecl-cuda" }
cubecl-macros = { path = "$patches/cubecl-macros" }
PATCH

started=$SECONDS
packages=(-p blockformer-cli)
for option in "$@"; do [ "$option" != --workspace ] || packages=(); done
# For CUDA 12.0: a program that is built for a newer one asks the driver for functions that older drivers have not.
export CUDARC_CUDA_VERSION="${CUDARC_CUDA_VERSION:-12000}"
# A toolkit is looked for where the program runs; while it is built, it would change nothing but what has to be built anew.
unset=(-u CUDA_PATH -u CUDA_HOME -u CUDA_ROOT)
[ "$verb" != test ] || [[ " $* " = *" --no-run "* ]] || unset=()
env "${unset[@]}" CARGO_TARGET_DIR="$target" cargo "$verb" --manifest-path "$copy/Cargo.toml" "${packages[@]}" --features cuda "$@"
echo "check-cuda: cargo $verb took $((SECONDS - started)) s"
[ "$verb" = build ] || exit 0

# What the program says on a machine without a driver.
profile=debug
for option in "$@"; do [ "$option" != --release ] || profile=release; done
program=$target/$profile/blockformer
for library in libcuda libnvrtc libcudart; do
    ! ldd "$program" | grep "$library" || fail "$library is linked, not loaded when needed"
done
echo "check-cuda: $program needs these libraries to start:"
ldd "$program"
"$program" generate --prompt "The people" --max-new-tokens 4
if answer=$("$program" generate --device cuda:0 --prompt "The people" --max-new-tokens 4 2>&1); then
    echo "check-cuda: there is a GPU, and it generates: $answer"
else
    echo "$answer"
    grep -q '^error: device "cuda:0" was not found' <<< "$answer" || fail "a missing driver is not told plainly"
fi
