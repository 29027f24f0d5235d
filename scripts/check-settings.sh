#!/usr/bin/env bash
# Checks every settings file that is shipped. Usage: scripts/check-settings.sh BIN_DIR
#
# First against the JSON Schema that editors use, then by the program that reads them; the latter
# also says what is valid but looks like a slip. Variables that a file asks for get a made-up value.
set -euo pipefail

bin="${1:-.venv/bin}"
files=(proxy_config.yaml config/*.yaml)

"$bin/check-jsonschema" --quiet --schemafile config/magic-proxy.schema.json "${files[@]}"

for file in "${files[@]}"; do
    made_up=()
    while read -r name; do
        made_up+=("$name=made-up")
    done < <(grep -v '^ *#' "$file" | grep -oE '\$\{[A-Z][A-Z0-9_]*\}' | tr -d '${}' | sort -u)
    env "${made_up[@]}" "$bin/magic-proxy" check --strict "$file" >/dev/null || {
        echo "$file: see above" >&2
        exit 1
    }
done
