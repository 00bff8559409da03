#!/usr/bin/env bash
# Makes .venv from uv.lock; further arguments go to `uv sync`. Needs Python 3.11 or later; takes uv from PATH, else installs it into .cache/uv.
set -euo pipefail
python=${PYTHON:-python3}

say() { printf 'setup: %s\n' "$*"; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "needs Python 3.11 or later: $("$python" --version 2>&1 || echo "no $python")"; exit 1
fi
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    uv=.cache/uv/bin/uv
    if [ ! -x "$uv" ]; then
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            [ "$(id -u)" = 0 ] || { say "Python has no venv module: install python3-venv as root, then run this again"; exit 1; }
            say "installing python3-venv (apt)"
            apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv >/dev/null
        fi
        say "installing uv into .cache/uv"
        "$python" -m venv .cache/uv && .cache/uv/bin/pip -q install uv
    fi
fi
say "installing Python packages into .venv (uv.lock)"
"$uv" sync --quiet --frozen --python "$("$python" -c 'import sys; print(sys.executable)')" "$@"
