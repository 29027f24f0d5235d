"""`magic-proxy keys`: how the upstream keys of a running proxy stand."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from proxy.cli.admin_api import DEFAULT_URL, KEY_VARIABLE, AdminKeyVariable, ProxyUrl, ask
from proxy.cli.options import JsonOutput
from proxy.cli.output import note, out, print_json

_COLOURS = {"available": "green", "cooling": "yellow", "retired": "red"}


def keys(
    url: ProxyUrl = DEFAULT_URL,
    admin_key_env: AdminKeyVariable = KEY_VARIABLE,
    as_json: JsonOutput = False,
) -> None:
    """Show the state, use and headroom of a running proxy's upstream keys, by fingerprint.

    Exits with 0 when it is told, 1 where no proxy answers, 2 where it refused.
    """
    told = ask("/admin/keys", None, expected="upstreams", url=url, key_variable=admin_key_env)
    if as_json:
        print_json(told)
        return
    for upstream, each in told["upstreams"].items():
        out.print(Text(upstream, style="bold"))
        for key in each:
            # Each on one line, however long: for grep.
            out.print(_line(key), soft_wrap=True)
    if not told["upstreams"]:
        note("no upstream has keys: clients bring their own")


def _line(key: Mapping[str, Any]) -> Text:
    state = str(key["state"])
    line = Text(f"  {key['key']}  ")
    line.append(f"{state:9}", style=_COLOURS.get(state, ""))
    for name in ("in_flight", "uses", "failures"):
        line.append(f"  {key[name]:>4} {name.replace('_', ' ')}")
    if key["headroom"] is not None:
        line.append(f"  {key['headroom']:4.0%} headroom")
    if key["until"] is not None:
        line.append(f"  until {key['until']}")
    if key["reason"] is not None:
        line.append(f"  ({key['reason']})")
    if (states := key.get("workers")) is not None:
        line.append("".join(f"  worker {number}: {state}" for number, state in states.items()))
    return line
