#!/usr/bin/env bash
# Checks every settings file that is shipped. Usage: scripts/check-settings.sh BIN_DIR
#
# First against the JSON Schema that editors use, then by the program that reads them; the latter
# also says what is valid but looks like a slip. Variables that a file asks for get a made-up value.
set -euo pipefail

bin="${1:-.venv/bin}"
files=(proxy_config.yaml config/*.yaml)

made_up() {
    case "$1" in
        *REDIS*) echo "redis://redis.example:6379/0" ;;
        *URL* | *ENDPOINT*) echo "https://api.example/v1" ;;
        *HASH*) echo "sha256:$(printf '%s' "$1" | sha256sum | cut -d ' ' -f 1)" ;;
        *) echo "made-up" ;;
    esac
}

"$bin/check-jsonschema" --quiet --schemafile config/magic-proxy.schema.json "${files[@]}"

for file in "${files[@]}"; do
    variables=()
    for name in $(grep -v '^ *#' "$file" | grep -oE '\$\{[A-Z][A-Z0-9_]*\}' | tr -d '${}' | sort -u); do
        variables+=("$name=$(made_up "$name")")
    done
    env "${variables[@]}" "$bin/magic-proxy" check --strict "$file" >/dev/null
done
