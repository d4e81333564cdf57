#!/usr/bin/env bash
# Builds the two libraries that stand in for NVIDIA's.
#   scripts/emulated-cuda/build.sh DIRECTORY
set -euo pipefail
directory=${1:?where to}
sources=$(dirname "$0")
mkdir -p "$directory"
library() { # NAME SOURCE
    g++ -std=c++17 -O2 -Wall -Wextra -fPIC -shared -fvisibility=hidden "-Wl,-soname,$1" "$sources/$2" -o "$directory/$1" -ldl -lpthread
}
library libcuda.so driver.cpp
library libnvrtc.so compiler.cpp
