#!/usr/bin/env bash
# Runs the benchmarks one after the other. Usage: scripts/bench.sh BIN_DIR [NAME...]
#
# A benchmark is a program in bench/ that can be started by itself; NAME is its file name without
# .py. Nothing else should run on the machine meanwhile.
set -euo pipefail

bin="$1"
shift
if [ "$#" -eq 0 ]; then
    mapfile -t programs < <(grep -l '__name__ == "__main__"' bench/*.py)
else
    programs=("${@/#/bench/}")
    programs=("${programs[@]/%/.py}")
fi

for program in "${programs[@]}"; do
    name="$(basename "$program" .py)"
    echo "== $name"
    "$bin/python" -m "bench.$name"
done
