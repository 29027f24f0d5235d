#!/usr/bin/env bash
# Sees that /usr/bin/redis-server is there: the tests start their own servers from it, on free ports.
set -euo pipefail

redis=/usr/bin/redis-server
[ -x "$redis" ] && exit 0

# The package also tries to start a system service. The tests don't use it, so what counts is the program alone.
"$(dirname "$0")/apt-install.sh" redis-server || true
if [ ! -x "$redis" ]; then
    echo "The tests need $redis (Debian package redis-server)." >&2
    exit 1
fi
