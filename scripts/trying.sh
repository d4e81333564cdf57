# What scripts that try a server share; to be sourced. `scratch` is a folder and `pid` a server, once there is one, that
# are gone when the script ends.
scratch=$(mktemp -d)
pid=
cleanup() {
  [[ -z $pid ]] || kill "$pid" 2>/dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT

# found EXPRESSION SECONDS: waits until the server has said something in $scratch/output in which sed's EXPRESSION finds an
# address or port, and keeps it in `found`.
found() {
  for _ in $(seq $((10 * $2))); do
    found=$(sed -n "$1" "$scratch/output")
    [[ -z $found ]] || return 0
    kill -0 "$pid"
    sleep 0.1
  done
  echo "the server does not listen" >&2
  exit 1
}
