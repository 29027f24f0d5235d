#!/usr/bin/env bash
# Runs the benchmarks one after the other. Usage: scripts/bench.sh BIN_DIR [NAME...]
#
# A benchmark is a program bench/bench_NAME.py that can be started by itself. Nothing else should run
# on the machine meanwhile. Other programs in bench/, such as the soak, run only where they are named.
set -euo pipefail

bin="$1"
shift
if [ "$#" -eq 0 ]; then
    programs=(bench/bench_*.py)
else
    programs=()
    for name in "$@"; do
        program="bench/bench_$name.py"
        [ -e "$program" ] || program="bench/$name.py"
        programs+=("$program")
    done
fi

for program in "${programs[@]}"; do
    echo "== $program"
    "$bin/python" -m "bench.$(basename "$program" .py)"
done
