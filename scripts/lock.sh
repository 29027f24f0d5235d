#!/usr/bin/env bash
# Pins what goes into the image, with hashes and without naming an index. Usage: scripts/lock.sh BIN_DIR
#
# uv takes the index from its own settings; the result holds names, versions and hashes only.
set -euo pipefail

bin="${1:-.venv/bin}"
[ -x "$bin/uv" ] || "$bin/python" -m pip install -q uv

compile=(
    "$bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11
    --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock"
)
"${compile[@]}" pyproject.toml --output-file requirements/runtime.txt
"${compile[@]}" requirements/build.in --output-file requirements/build.txt
