#!/usr/bin/env bash
# Builds the example for browsers into a folder that any web server can serve:
#   scripts/build-browser.sh [FOLDER]       (target/browser if not given)
#   python3 -m http.server --directory target/browser
# Needs, beside Rust:
#   rustup target add wasm32-unknown-unknown
#   cargo install wasm-bindgen-cli --version 0.2.130     (the version that Cargo.toml pins)
# and makes the modules smaller if there is wasm-opt of Binaryen 116 or newer (npm install -g binaryen).
# WEBGPU=0 leaves out the build for GPUs; WASM_BINDGEN and WASM_OPT name the programs if they are not on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
folder=${1:-$target/browser}
bindgen=${WASM_BINDGEN:-wasm-bindgen}
opt=${WASM_OPT:-wasm-opt}

version=$(sed -n 's/^wasm-bindgen = "=\(.*\)"$/\1/p' Cargo.toml)
if [[ $("$bindgen" --version 2>/dev/null) != "wasm-bindgen $version" ]]; then
  echo "this needs wasm-bindgen $version: cargo install wasm-bindgen-cli --version $version" >&2
  exit 1
fi

# What browsers with WebAssembly SIMD have. (All that wasm-opt knows would be too much: it writes what no browser reads yet.)
features=(--enable-simd --enable-bulk-memory --enable-nontrapping-float-to-int --enable-sign-ext --enable-mutable-globals
  --enable-reference-types --enable-multivalue)

# A build of the package: the folder of its module, and its feature.
build() {
  RUSTFLAGS="-C target-feature=+simd128" cargo build --profile browser --target wasm32-unknown-unknown \
    -p blockformer-browser --no-default-features --features "$2"
  "$bindgen" --target web --no-typescript --out-dir "$folder/$1" \
    "$target/wasm32-unknown-unknown/browser/blockformer_browser.wasm"
  local module=$folder/$1/blockformer_browser_bg.wasm
  if command -v "$opt" >/dev/null; then
    "$opt" -O3 "${features[@]}" "$module" -o "$module.smaller"
    mv "$module.smaller" "$module"
  fi
}

mkdir -p "$folder/model"
build cpu flex
[[ ${WEBGPU:-1} == 0 ]] || build webgpu webgpu
cp examples/browser/web/* "$folder/"
cp crates/blockformer/model/{config.json,model.safetensors,tokenizer.json} "$folder/model/"

echo "built $folder:"
for file in "$folder"/*/*.{wasm,js,safetensors,json}; do
  printf '%10s bytes, %9s with gzip -9  %s\n' "$(wc -c <"$file")" "$(gzip -9 -c "$file" | wc -c)" "${file#"$folder"/}"
done
