#!/usr/bin/env bash
# Makes the environment of a gateway that the benchmarks compare with. Usage: scripts/bench-peer.sh NAME PYTHON
#
# It stands in .cache/bench/NAME, away from the project's own environment. The versions are those
# that the published figures were measured with; LiteLLM 1.107.0 was a compromised release.
set -euo pipefail

name="$1"
python="$2"
case "$name" in
    litellm) packages=('litellm[proxy]==1.106.2') ;;
    tensorzero) packages=('tensorzero==2026.6.0') ;;
    *) echo "unknown: $name" >&2; exit 2 ;;
esac

place="$(dirname "$0")/../.cache/bench/$name"
[ "$(cat "$place/.installed" 2>/dev/null)" = "${packages[*]}" ] && exit 0

echo "Installing ${packages[*]} into .cache/bench/$name; this takes a minute or two"
"$python" -m venv --clear "$place"
"$place/bin/python" -m pip install -q --disable-pip-version-check "${packages[@]}"
echo "${packages[*]}" >"$place/.installed"
