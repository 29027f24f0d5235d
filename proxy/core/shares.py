"""What each item of a batch cost: an upstream's token counts, split so that they add up (B32)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from proxy.core.entry import Usage
from proxy.core.items import Item
from proxy.core.wire import JsonValue

_LARGEST_COUNT: Final = 2**40

Counts: TypeAlias = dict[str, int]
"""Members of a `usage` object that are whole numbers, by name."""


def counts_in(usage: JsonValue) -> Counts | None:
    """The counts of a `usage` object; None where it is none.

    A number so large that a sum may be inexact somewhere is none. Other members (a price, nested
    objects) have no parts that are sure to add up.
    """
    if not isinstance(usage, Mapping):
        return None
    return {
        name: value
        for name, value in usage.items()
        if type(value) is int and 0 <= value <= _LARGEST_COUNT
    }


def split_counts(counts: Mapping[str, int], items: Sequence[Item]) -> list[Counts]:
    """Each item's part of `counts`: for every name the parts add up to the whole.

    Arrays of tokens weigh what they are long, texts what they take in UTF-8: as near as one gets
    without the model's own tokenizer.
    """
    lengths = [len(item) if isinstance(item, list) else len(item.encode()) for item in items]
    parts = {name: split_number(count, lengths) for name, count in counts.items()}
    return [{name: parts[name][place] for name in parts} for place in range(len(items))]


def split_number(count: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `count`, in proportion to `weights`, by largest remainder.

    Weights that add up to the count are the parts themselves. Where there is enough for that, each
    part is 1 at least.
    """
    if sum(weights) == count:
        return list(weights)
    least = 1 if count >= len(weights) else 0
    rest = count - least * len(weights)
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    parts = [least + rest * weight // whole for weight in weights]
    left = count - sum(parts)
    by_remainder = sorted(
        range(len(weights)), key=lambda place: rest * weights[place] % whole, reverse=True
    )
    for place in by_remainder[:left]:
        parts[place] += 1
    return parts


def added(all_counts: Iterable[Mapping[str, int] | None]) -> Counts | None:
    """The sum over all positions; None where one of them is not known.

    What only some of them count is left out.
    """
    total: Counts | None = None
    for counts in all_counts:
        if counts is None:
            return None
        if total is None:
            total = dict(counts)
        elif total.keys() == counts.keys():
            for name, count in counts.items():
                total[name] += count
        else:
            total = {name: total[name] + counts[name] for name in total if name in counts}
    return total


def added_usage(usages: Iterable[Usage | None]) -> Usage | None:
    """The sum of those that are known; None where none is."""
    known = [usage for usage in usages if usage is not None]
    if not known:
        return None
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in known),
        completion_tokens=sum(usage.completion_tokens for usage in known),
        total_tokens=sum(usage.total_tokens for usage in known),
    )


def spared_usage(whole: Usage, billed: Usage) -> Usage:
    """What of an answer's usage the upstream did not count for this request."""
    return Usage(
        prompt_tokens=max(0, whole.prompt_tokens - billed.prompt_tokens),
        completion_tokens=max(0, whole.completion_tokens - billed.completion_tokens),
        total_tokens=max(0, whole.total_tokens - billed.total_tokens),
    )
