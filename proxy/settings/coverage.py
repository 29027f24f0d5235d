"""Whether one rule leaves anything over for a later one. Says yes only where that is certain."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from proxy.settings.cache import RuleSettings, WhenSettings


def covers(earlier: RuleSettings, later: RuleSettings) -> bool:
    """True where every request that `later` matches is matched by `earlier` already."""
    return (
        set(earlier.endpoints) >= set(later.endpoints)
        and all(names_cover(earlier.model_names, name) for name in later.model_names)
        and _when_covers(earlier.when, later.when)
    )


def names_cover(names: Iterable[str], pattern: str) -> bool:
    """True where one of the names or globs matches whatever `pattern` matches."""
    return any(_covers_pattern(name, pattern) for name in names)


def _covers_pattern(name: str, pattern: str) -> bool:
    if name in {pattern, "*"}:
        return True
    # `*` swallows the other's wild cards with all that they stand for; `?` and `[` would not.
    wild = any(char in pattern for char in "*?[")
    return fnmatchcase(pattern, name) and not (wild and any(char in name for char in "?["))


def _when_covers(earlier: WhenSettings, later: WhenSettings) -> bool:
    return (
        _limit_covers(earlier.max_temperature, later.max_temperature)
        and _limit_covers(earlier.max_messages, later.max_messages)
        and earlier.has_user_message in {None, later.has_user_message}
        and _headers_cover(earlier, later)
    )


def _limit_covers(earlier: float | None, later: float | None) -> bool:
    return earlier is None or (later is not None and later <= earlier)


def _headers_cover(earlier: WhenSettings, later: WhenSettings) -> bool:
    theirs = {name.lower(): glob for name, glob in later.headers.items()}
    return all(
        name.lower() in theirs and glob in {"*", theirs[name.lower()]}
        for name, glob in earlier.headers.items()
    )
