#!/usr/bin/env bash
# Runs benchmarks one after the other. Usage: scripts/bench.sh BIN_DIR [NAME...]
#
# A benchmark is a program bench/bench_NAME.py that can be started by itself. Nothing else should run
# on the machine meanwhile. Without a name: what the goals of docs/performance.md are about, in 15 to
# 20 minutes. All others, the soak and the chaos, run only where they are named.
set -euo pipefail

bin="$1"
shift
[ "$#" -gt 0 ] || set -- hit memory start scaling

for name in "$@"; do
    [ ! -e "bench/bench_$name.py" ] || name="bench_$name"
    echo "== bench.$name"
    "$bin/python" -m "bench.$name"
done
