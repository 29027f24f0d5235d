#!/usr/bin/env bash
# Makes the virtual environment. Usage: scripts/bootstrap.sh [DIRECTORY]
#
# Takes the first interpreter that is Python 3.11 or newer: $PYTHON, else python3, else the versioned
# names. On Debian and its relatives it installs what is missing (python3, python3-venv).
# An environment that works is left as it is.
set -euo pipefail

venv="${1:-.venv}"
here="$(cd "$(dirname "$0")" && pwd)"

# A name on the path proves little: version managers put shims there that only print an error.
is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        if is_new_enough "$PYTHON"; then
            echo "$PYTHON"
            return
        fi
        echo "PYTHON=$PYTHON is not a Python 3.11 or newer." >&2
        exit 1
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

if [ -x "$venv/bin/python" ] && is_new_enough "$venv/bin/python" \
    && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

if ! python="$(find_python)"; then
    [ -z "${PYTHON:-}" ] || exit 1
    echo "No Python 3.11 or newer found; trying the system's packages."
    "$here/apt-install.sh" python3 python3-venv
    if ! python="$(find_python)"; then
        echo "magic-proxy needs Python 3.11 or newer. Install one, or name it: make PYTHON=/path/to/python3" >&2
        exit 1
    fi
fi

echo "Making $venv with $python ($("$python" -c 'import platform; print(platform.python_version())'))"
if ! "$python" -m venv --clear "$venv" >/dev/null 2>&1; then
    # Debian's python3 comes without ensurepip; python3-venv brings it.
    version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    "$here/apt-install.sh" "python${version}-venv" || "$here/apt-install.sh" python3-venv
    "$python" -m venv --clear "$venv"
fi
