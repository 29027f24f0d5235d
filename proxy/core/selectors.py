"""What a purge is about: a selector names entries by what they have in common."""

from dataclasses import dataclass, fields
from typing import Protocol


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

    @property
    def set_members(self) -> tuple[tuple[str, str], ...]:
        """The members that are set, in the order of the class, with their values."""
        return tuple(
            (field.name, value)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        )


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
