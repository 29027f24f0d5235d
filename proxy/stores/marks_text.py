"""Marks as a log writes them: a number, and a text that names selector and kind.

The text is a JSON object of the members that are set, with `"soft": true` and `"before"` (seconds)
where they apply: one selector and kind always has the same text. `{}` is everything, at once.
"""

from typing import Any, Final

import orjson

from proxy.core.marks import EVERYTHING
from proxy.core.selectors import MEMBERS, Mark, Selector

EVERYTHING_TEXT: Final = "{}"
# Beside the marks a log keeps two numbers of its own, under names that no JSON object has.
NUMBER_NAME: Final = "number"
EPOCH_NAME: Final = "epoch"
# How many of the oldest marks fold into one when the bound is passed: one in ten.
FOLDED_SHARE: Final = 10


def mark_text(selector: Selector, *, soft: bool, stored_before: float | None) -> str:
    """The text of a mark. The selector's members are Unicode."""
    members: dict[str, Any] = dict(selector.set_members)
    if soft:
        members["soft"] = True
    if stored_before is not None:
        members["before"] = stored_before
    return orjson.dumps(members, option=orjson.OPT_SORT_KEYS).decode()


def mark_of(text: bytes | str, number: int) -> Mark:
    """The mark of a text. What can't be read makes it wider: it purges too much, never too little.

    A member that is not known here (a newer version's) is left out; a text that is no JSON object
    is a mark on everything.
    """
    try:
        members = orjson.loads(text)
    except orjson.JSONDecodeError:
        members = None
    if not isinstance(members, dict):
        return Mark(number, EVERYTHING)
    known = {
        name: value for name, value in members.items() if name in MEMBERS and isinstance(value, str)
    }
    before = members.get("before")
    if isinstance(before, bool) or not isinstance(before, int | float):
        before = None
    return Mark(
        number,
        Selector(**known),
        soft=members.get("soft") is True,
        stored_before=before,
    )
