"""An explanation as a person wants to read it."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.core.outcome import XCache
from proxy.engine.explaining import Explained

_COLOURS = {XCache.HIT: "green", XCache.MISS: "yellow", XCache.BYPASS: "magenta"}
_FIELDS = {
    "in_key": "in the key",
    "model": "in the key as the internal model name",
    "delivery": "how it travels, not in the key",
    "excluded": "taken out by exclude_from_key",
    "barring": "not in the key, and forbids one",
    "ignored": "not in the key, without effect",
    "absent": "listed by the rule, absent here",
}


def print_explained(explained: Explained, console: Console) -> None:
    """The verdict first, then rule, fields, key and entry."""
    derivation: dict[str, Any] = explained.derivation
    verdict = Text(explained.verdict.value, style=_COLOURS.get(explained.verdict, "red"))
    if explained.reason:
        verdict.append(f"  {explained.reason}", style="default")
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("would be", verdict)
    table.add_row("endpoint", derivation["endpoint"])
    table.add_row("model", derivation["model"])
    table.add_row("rule", derivation["rule"] or "none matches")
    for passed in derivation["passed_over"]:
        table.add_row("", Text(f"not {passed['rule']}: {passed['why']}", style="dim"))
    for name, meaning in _FIELDS.items():
        if fields := derivation["fields"][name]:
            table.add_row(Text(meaning), ", ".join(fields))
    table.add_row("scope", derivation["scope"])
    if derivation["store_key"] is not None:
        table.add_row("key", Text(derivation["store_key"]))
        table.add_row("hashed", Text(derivation["canonical"]))
    table.add_row("stored", Text(_stored(explained.stored)))
    console.print(table)


def _stored(stored: Any) -> str:
    if stored is None:
        return "nothing"
    tokens = stored["usage"]["total_tokens"] if stored["usage"] else "unknown"
    return (
        f"{stored['form']}, {stored['payload_bytes']} bytes, {tokens} tokens, "
        f"{stored['age_seconds']:.0f} s old, fresh for {stored['ttl_seconds']:.0f} s, "
        f"by rule {stored['rule']}"
    )
