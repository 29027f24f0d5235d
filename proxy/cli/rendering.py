"""An explanation as a person wants to read it."""

from typing import Any

from rich.console import Console
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
    rows = [
        ("would be", verdict),
        ("endpoint", Text(derivation["endpoint"])),
        ("model", Text(derivation["model"])),
        ("rule", Text(derivation["rule"] or "none matches")),
    ]
    rows += [
        ("", Text(f"not {passed['rule']}: {passed['why']}", style="dim"))
        for passed in derivation["passed_over"]
    ]
    for name, meaning in _FIELDS.items():
        if fields := derivation["fields"][name]:
            rows.append((meaning, Text(", ".join(fields))))
    rows.append(("scope", Text(derivation["scope"])))
    if derivation["store_key"] is not None:
        rows.append(("key", Text(derivation["store_key"])))
        rows.append(("hashed", Text(derivation["canonical"])))
    if (items := derivation.get("items")) is not None:
        rows += [("input", Text(f"{item['state']:12}{item['store_key']}")) for item in items]
    else:
        rows.append(("stored", Text(_stored(explained.stored))))
    width = max(len(label) for label, _ in rows) + 2
    for label, value in rows:
        # Each on one line, however long: keys are compared, copied, and looked for with grep.
        console.print(Text.assemble((label.ljust(width), "bold"), value), soft_wrap=True)


def _stored(stored: Any) -> str:
    if stored is None:
        return "nothing"
    tokens = stored["usage"]["total_tokens"] if stored["usage"] else "unknown"
    return (
        f"{stored['form']}, {stored['payload_bytes']} bytes, {tokens} tokens, "
        f"{stored['age_seconds']:.0f} s old, fresh for {stored['ttl_seconds']:.0f} s, "
        f"by rule {stored['rule']}"
    )
