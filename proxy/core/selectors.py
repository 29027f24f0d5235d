"""What a purge is about: a selector names entries by what they have in common."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Protocol

from proxy.core.tags import normalized_tag
from proxy.core.wire import Endpoint

LONGEST_VALUE: Final = 1024
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST_DIGITS: Final = 64


class Tagged(Protocol):
    """What selectors look at: an entry, or a call whose answer may become one.

    `key` is a full store key; `generation` is the number of the last purge that was known when
    the call began.
    """

    @property
    def key(self) -> str: ...

    @property
    def rule(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def tenant(self) -> str: ...

    @property
    def tags(self) -> tuple[str, ...]: ...

    @property
    def stored_at(self) -> float: ...

    @property
    def generation(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Selector:
    """Entries that fit every member that is set; with none set, all entries.

    `digest` is a key's digest in hex, `endpoint` an `Endpoint`'s value; both are read out of an
    entry's key. Names are exact, there are no globs: that is what makes a purge one mark.
    """

    digest: str | None = None
    endpoint: str | None = None
    rule: str | None = None
    model: str | None = None
    tenant: str | None = None
    tag: str | None = None

    @classmethod
    def from_members(cls, members: Mapping[str, object]) -> "Selector":
        """The selector of what an operator wrote, its tag normalized; ValueError says what's wrong.

        No members at all select everything: whether that is meant is for the caller to ask.
        """
        for name in members:
            if name not in MEMBERS:
                raise ValueError(f"{name!r} can't be selected by; what can: {', '.join(MEMBERS)}")
        return cls(**{name: _checked(name, value) for name, value in members.items()})

    @property
    def set_members(self) -> tuple[tuple[str, str], ...]:
        """The members that are set, in the order of the class, with their values."""
        return tuple(
            [(name, value) for name in MEMBERS if (value := getattr(self, name)) is not None]
        )


MEMBERS: Final = tuple(field.name for field in fields(Selector))


@dataclass(frozen=True, slots=True)
class Mark:
    """One purge: entries of an earlier generation than `number` that fit are gone, or stale.

    `number` is unique and grows with every purge of all who share the store; 0 is none yet.
    `stored_before` (wall-clock seconds) spares what is younger; None spares nothing. `soft` makes
    entries stale, where otherwise they are gone.
    """

    number: int
    selector: Selector
    soft: bool = False
    stored_before: float | None = None


def key_members(store_key: str) -> tuple[str, str]:
    """Digest and endpoint of a full store key; a variant's number at its end is passed over."""
    parts = store_key.rsplit(":", 4)
    at = -1 if len(parts[-1]) == _DIGEST_DIGITS else -2
    try:
        return parts[at], parts[at - 2]
    except IndexError:  # no store key: nothing selects it by these
        return "", ""


def _checked(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text")  # noqa: TRY004 - one error for all mistakes
    text = normalized_tag(value) if name == "tag" else value
    if not text:
        raise ValueError(f"{name} must not be empty")
    if len(text) > LONGEST_VALUE:
        raise ValueError(f"{name} must have at most {LONGEST_VALUE} characters")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} must be Unicode text")
    if name == "digest" and not _DIGEST.fullmatch(text):
        raise ValueError("digest must be 64 hexadecimal digits, in lower case")
    if name == "endpoint" and text not in list(Endpoint):
        raise ValueError(f"endpoint must be one of: {', '.join(Endpoint)}")
    return text
