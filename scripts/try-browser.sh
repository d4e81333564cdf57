#!/usr/bin/env bash
# Opens the example for browsers in headless Chromium and uses it as people do, rightly and wrongly. Ends with an error
# if anything is not as expected.
#   scripts/try-browser.sh [measure]        (measure: the speed of each backend, too)
# Needs Chromium, Node 18 or newer, npm and Python, and what scripts/build-browser.sh needs.
# BLOCKFORMER_BROWSER: a folder that is built already; CHROMIUM: the browser; SCREENSHOTS: a folder to put pictures in;
# CHROMIUM_ARGUMENTS: more arguments for the browser, and WEBGPU=1 to expect that it has a GPU then.
set -euo pipefail
cd "$(dirname "$0")/.."
driver=playwright-core@1.65.1
folder=${BLOCKFORMER_BROWSER:-}
if [[ -z $folder ]]; then
  folder=${CARGO_TARGET_DIR:-target}/browser
  scripts/build-browser.sh "$folder"
fi

. scripts/trying.sh
npm install --prefix "$scratch" --no-fund --no-audit --silent "$driver"
python3 -u -m http.server 0 --bind 127.0.0.1 --directory "$folder" >"$scratch/output" 2>"$scratch/requests" &
pid=$!
found 's/.* port \([0-9]*\) .*/\1/p' 10

DRIVER=$scratch/node_modules/playwright-core CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v google-chrome)} \
  node scripts/try-browser.mjs "http://127.0.0.1:$found/" "$@"
