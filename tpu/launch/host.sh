#!/usr/bin/env bash
# What a launch does on each host of a slice, in the folder of the checkout:
#   host.sh setup          Python and the project, once
#   host.sh start CMD...   start CMD in the background; its output goes to job.log
#   host.sh follow         print job.log until CMD has ended, and end as it did
#   host.sh status         print the status that CMD ended with, or "running"
#   host.sh stop           ask CMD to save and end; a launch with --spot starts it again
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH="$HOME/.local/bin:$PWD/.venv/bin:$PATH"

setup() {
    # The images bring an older Python than jax wants; uv fetches one.
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv
    [ -x .venv/bin/python ] || uv venv --quiet --python 3.12 .venv
    uv pip install --quiet --python .venv/bin/python --editable ".[${PROMPTEOL_EXTRAS:-tpu,gcs}]"
    .venv/bin/python -c 'import jax; print("jax", jax.__version__)'
}

running() {
    [ -f job.pid ] && kill -0 "$(cat job.pid)" 2>/dev/null
}

# The job before may be ending: processes of a slice do not all end at one time.
await_end() {
    local left=${PROMPTEOL_WAIT_S:-60}
    while running && [ "$left" -gt 0 ]; do
        sleep 1
        left=$((left - 1))
    done
}

start() {
    await_end
    if running; then
        echo "a job is running already: process $(cat job.pid)" >&2
        exit 3
    fi
    rm -f job.status
    : >job.log
    # The subshell outlives this connection, and leaves the status behind for `follow`.
    setsid nohup bash -c '"$@" >>job.log 2>&1; echo $? >job.status' job "$@" </dev/null >/dev/null 2>&1 &
    echo $! >job.pid
}

follow() {
    tail --lines=+1 --follow=name --retry --pid="$(cat job.pid)" job.log 2>/dev/null || true
    exit "$(ended)"
}

# The status is written an instant before the process is gone; without one it was killed.
ended() {
    local status
    status=$(cat job.status 2>/dev/null || echo 137)
    echo "$((status == 255 ? 254 : status))" # 255 is what ssh says of a broken connection
}

status() {
    if running; then echo running; else ended; fi
}

stop() {
    if running; then
        pkill -TERM --session "$(cat job.pid)" python || true
    fi
}

"$@"
