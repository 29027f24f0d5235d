"""A purge as an operator words it: members by name, read into a selector."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final

from proxy.core.key import CacheKey
from proxy.core.selectors import Selector
from proxy.core.wire import JsonValue

AGE: Final = "older_than_seconds"
ALL: Final = "all"
# What says which entries are meant, and what says how.
SELECTING: Final = ("key", "rule", "model", "tag", "tenant", "endpoint", AGE)
FLAGS: Final = (ALL, "soft", "dry_run")

_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")


class BadPurge(ValueError):
    """What an operator wrote is no purge; `member` is what is wrong with it, "" for all of it."""

    def __init__(self, message: str, member: str = "") -> None:
        super().__init__(message)
        self.member = member


@dataclass(frozen=True, slots=True)
class Purge:
    """Which entries to purge, and how.

    With `older_than_seconds`, only what was stored longer ago. `soft` makes entries stale, where
    otherwise they are gone. `dry_run` only counts. `store_key` is set where a whole one was given.
    """

    selector: Selector
    older_than_seconds: float | None = None
    soft: bool = False
    dry_run: bool = False
    store_key: str | None = None

    @classmethod
    def of(cls, members: Mapping[str, object], *, key_prefix: str) -> "Purge":
        """Read what an operator wrote; raises `BadPurge`.

        A key is a full store key under `key_prefix`, or a digest. That everything is meant must be
        said: `all`, and nothing beside it.
        """
        for name in members:
            if name not in SELECTING and name not in FLAGS:
                known = ", ".join((*SELECTING, *FLAGS))
                raise BadPurge(f"There is no member {name!r}; known: {known}.", name)
        flags = {name: _flag(name, members.get(name)) for name in FLAGS}
        given = {name: members[name] for name in SELECTING if members.get(name) is not None}
        if flags[ALL] and given:
            raise BadPurge(f"`all` stands alone, not with {', '.join(given)}.", ALL)
        if not given and not flags[ALL]:
            raise BadPurge(
                f"This selects nothing: name at least one of {', '.join(SELECTING)}, or say "
                "`all` to purge everything."
            )
        store_key, named = _key(given.pop("key", None), key_prefix)
        return cls(
            selector=_selector(given, named),
            older_than_seconds=_age(given.get(AGE)),
            soft=flags["soft"],
            dry_run=flags["dry_run"],
            store_key=store_key,
        )

    @property
    def kind(self) -> str:
        """What it selects by, in one word."""
        names = list(self.as_dict())
        return names[0] if len(names) == 1 else "several"

    def as_dict(self) -> dict[str, JsonValue]:
        """What it selects, in the words in which it was given; a tag is normalized."""
        told: dict[str, JsonValue] = dict(self.selector.set_members)
        digest = told.pop("digest", None)
        if digest is not None:
            told = {"key": self.store_key or digest, **told}
        if self.store_key is not None:
            told.pop("endpoint", None)
        if self.older_than_seconds is not None:
            told[AGE] = self.older_than_seconds
        return told or {ALL: True}


def _flag(name: str, value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise BadPurge(f"{name} must be true or false.", name)
    return value or False


def _age(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadPurge(f"{AGE} must be a number.", AGE)
    try:
        seconds = float(value)
    except OverflowError:
        seconds = -1.0
    if not isfinite(seconds) or seconds < 0:
        raise BadPurge(f"{AGE} must be a number of seconds, 0 or more.", AGE)
    return seconds


def _key(value: object, key_prefix: str) -> tuple[str | None, dict[str, str]]:
    """The full store key, if it is one, and what the key selects."""
    if value is None:
        return None, {}
    if not isinstance(value, str):
        raise BadPurge("key must be a text.", "key")
    if _DIGEST.fullmatch(value):
        return None, {"digest": value.lower()}
    try:
        key = CacheKey.parse(value, key_prefix)
    except ValueError:
        raise BadPurge(
            f"key must be 64 hexadecimal digits, or a store key that starts with {key_prefix}.",
            "key",
        ) from None
    return value, {"endpoint": key.endpoint.value, "digest": key.digest}


def _selector(given: Mapping[str, object], named: Mapping[str, str]) -> Selector:
    members: dict[str, object] = dict(named)
    for name, value in given.items():
        if name == AGE:
            continue
        if members.get(name, value) != value:
            raise BadPurge(f"The key is of another {name}.", name)
        try:
            Selector.from_members({name: value})
        except ValueError as error:
            raise BadPurge(f"{error}.", name) from None
        members[name] = value
    return Selector.from_members(members)
