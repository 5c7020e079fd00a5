#!/usr/bin/env bash
# The wheel works in an empty environment with each extra alone; needs the network and minutes.
#   bash tests/support/wheel.sh [PYTHON [EXTRA...]]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(realpath --no-symlinks "${1:-$root/.venv/bin/python}")
[ $# -gt 0 ] && shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$scratch" "$root"
wheel=$(echo "$scratch"/*.whl)

check() {
    local extra=$1 bin=$scratch/$1/bin
    "$python" -m venv "$scratch/$extra"
    "$bin/pip" install --quiet --constraint "$root/tpu/deploy/requirements.lock" "$wheel${2:-}"
    "$bin/pip" check
    cd "$scratch"
    "$bin/prompteol" show --model tiny "A cat sleeps." > /dev/null
    case $extra in
    serve) "$bin/python" -c "from prompteol_jax.serve import command" ;;
    ray) printf 'a cat\na dog\n' > texts.txt && "$bin/prompteol" encode --engine ray --workers 1 --device cpu --model tiny --input texts.txt --output vectors ;;
    mteb) "$bin/python" -m eval.mteb --help > /dev/null ;;
    gcs) "$bin/python" -c "from prompteol_jax.storage import paths; print(paths.as_path('gs://b/x'))" ;;
    none) ! "$bin/prompteol" serve --model tiny 2> said || exit 1; grep -q "pip install" said ;;
    esac
    echo "$extra: works"
}

[ $# -gt 0 ] || set -- none serve ray gcs mteb
for extra in "$@"; do
    if [ "$extra" = none ]; then check none; else check "$extra" "[$extra]"; fi
done
