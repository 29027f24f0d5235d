"""Several answers to one request: how many a rule collects, and which comes next."""

from collections.abc import Sequence
from typing import Final

from proxy.core.key import Derivation
from proxy.core.matching import DEFAULT_TEMPERATURE
from proxy.core.wire import Endpoint

# A client may ask for any number of keys: the memo of whose turn it is must not grow with them.
_MOST_TURNS: Final = 4096


def variant_count(derivation: Derivation) -> int:
    """How many answers to collect: 1 where the rule, or a temperature of 0, wants no more."""
    rule, request = derivation.rule, derivation.request
    if rule is None or rule.variants == 1 or request.endpoint is not Endpoint.CHAT:
        return 1
    temperature = request.fields.get("temperature")
    if temperature is None:
        temperature = DEFAULT_TEMPERATURE
    warm = isinstance(temperature, int | float) and temperature > 0
    return rule.variants if warm else 1


class Turns:
    """Whose turn it is, by store key."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def next(self, key: str) -> int:
        """0, 1, 2, … for each key; a key that was not asked for long begins anew."""
        turn = self._turns.pop(key, 0)
        if len(self._turns) >= _MOST_TURNS:
            del self._turns[next(iter(self._turns))]
        self._turns[key] = turn + 1
        return turn


def to_fill(missing: Sequence[int], under_way: Sequence[bool], turn: int) -> int:
    """Which of the `missing` variants to ask for: one that nobody asks for, else one in turn."""
    for variant, is_under_way in zip(missing, under_way, strict=True):
        if not is_under_way:
            return variant
    return missing[turn % len(missing)]
