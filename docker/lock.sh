#!/usr/bin/env bash
# Refresh the image's locks to today's newest versions within their bounds: `docker/lock.sh`.
# Needs uv, on the path or in .venv. Writes docker/requirements{,-gpu,-align}.lock; `make test` then checks them.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=$(command -v uv || echo .venv/bin/uv)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# resolve NAME [uv option...]: docker/NAME.in -> NAME.lock, for the image's Python and platform, with no address in it.
resolve() {
    local name=$1
    shift
    {
        echo "# Made by docker/lock.sh from docker/$name.in; don't edit."
        "$uv" pip compile "docker/$name.in" --quiet --no-header --no-annotate --no-emit-index-url \
            --generate-hashes --python-version 3.11 --python-platform x86_64-unknown-linux-gnu "$@"
    } >"$work/$name.lock"
}

resolve requirements
resolve requirements-gpu

# The alignment step lives in its own folder: it repeats no package of the worker's, and agrees with its versions.
# torch comes from elsewhere (see the Dockerfile), so the resolver is told that no machine needs it.
printf '%s; sys_platform == "never"\n' torch torchaudio >"$work/without-torch.txt"
mapfile -t present < <(sed -nE 's/^([a-z0-9][a-z0-9.-]*)==.*/--no-emit-package=\1/p' "$work/requirements.lock")
resolve requirements-align --constraint "$work/requirements.lock" --override "$work/without-torch.txt" "${present[@]}"

mv "$work"/requirements*.lock docker/
