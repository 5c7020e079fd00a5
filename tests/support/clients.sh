#!/usr/bin/env bash
# Official clients against `prompteol serve`, each in an environment of its own; needs the network.
#   bash tests/support/clients.sh [PYTHON]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=$(realpath --no-symlinks "${1:-$root/.venv/bin/python}")
scratch=$(mktemp -d)
cd "$root"

"$python" -m prompteol_jax.cli serve --model tiny --dtype float32 --max-tokens 64 --port 0 2> "$scratch/log" &
server=$!
trap 'kill "$server" 2> /dev/null; rm -rf "$scratch"' EXIT
until url=$(grep -o 'ready on http://[^,]*' "$scratch/log" | cut -d' ' -f3) && [ -n "$url" ]; do
    kill -0 "$server" || { cat "$scratch/log"; exit 1; }
    sleep 0.5
done

"$python" "$here/clients.py" expected "$scratch/expected.npy"
for client in openai langchain-openai llama-index-embeddings-openai mteb; do
    "$python" -m venv "$scratch/$client"
    more=
    [ "$client" = mteb ] && more="openai tiktoken"
    # shellcheck disable=SC2086 # two packages
    "$scratch/$client/bin/pip" install --quiet "$client" numpy $more
    OPENAI_BASE_URL="$url/v1" OPENAI_API_KEY=none \
        "$scratch/$client/bin/python" "$here/clients.py" "$client" "$scratch/expected.npy"
done
