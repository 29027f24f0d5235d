"""Events: what an operator calls a set of purges by, filled from what the event tells.

model_updated:  ["model:{model}"]
project_closed: ["tag:project:{project}", "event:model_updated"]
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from proxy.core.canonical import canonical_json
from proxy.core.purge import AGE, ALL, BadPurge, Purge
from proxy.core.wire import JsonValue

_PART: Final = re.compile(r"(?P<text>[^{}]+)|\{(?P<place>[A-Za-z_][A-Za-z0-9_.-]*)\}")


class TargetKind(StrEnum):
    """What a target selects by; `event` stands for the targets of another one."""

    KEY = "key"
    RULE = "rule"
    MODEL = "model"
    TAG = "tag"
    TENANT = "tenant"
    ENDPOINT = "endpoint"
    ALL = "all"
    OLDER_THAN = "older_than"
    EVENT = "event"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a member of the event's context goes."""

    name: str


_Part: TypeAlias = str | _Place


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that an event purges: a kind, and a value with places such as `{model}`."""

    text: str
    kind: TargetKind
    parts: tuple[_Part, ...]

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read `kind:value`, or `all`; ValueError says what is wrong."""
        name, colon, value = text.partition(":")
        try:
            kind = TargetKind(name)
        except ValueError:
            kinds = ", ".join(TargetKind)
            raise ValueError(f"must start with one of: {kinds} (as in model:{{model}})") from None
        if kind is TargetKind.ALL:
            if colon:
                raise ValueError("`all` takes no value")
            return cls(text, kind, ())
        if not value.strip():
            raise ValueError(f"must name what to purge: {name}:…")
        parts = _parts(value)
        if kind is TargetKind.EVENT and parts != (value,):
            raise ValueError("the name of an event has no places")
        return cls(text, kind, parts)

    @property
    def value(self) -> str | None:
        """The value where it has no places."""
        return None if self.places else "".join(map(str, self.parts))

    @property
    def places(self) -> tuple[str, ...]:
        """The names that the context has to tell."""
        return tuple(part.name for part in self.parts if isinstance(part, _Place))

    def purge(
        self, context: Mapping[str, JsonValue], *, key_prefix: str, soft: bool, dry_run: bool
    ) -> Purge:
        """What to purge, under this context; raises `BadPurge`."""
        flags = {"soft": soft, "dry_run": dry_run}
        if self.kind is TargetKind.ALL:
            return Purge.of({ALL: True, **flags}, key_prefix=key_prefix)
        value = "".join(
            _told(part.name, context) if isinstance(part, _Place) else part for part in self.parts
        )
        if self.kind is not TargetKind.OLDER_THAN:
            return Purge.of({self.kind.value: value, **flags}, key_prefix=key_prefix)
        try:
            seconds = float(value)
        except ValueError:
            raise BadPurge("older_than must be a number of seconds.", "older_than") from None
        return Purge.of({AGE: seconds, **flags}, key_prefix=key_prefix)


@dataclass(frozen=True, slots=True)
class Event:
    """A named set of targets; with `soft` its own targets become stale instead of gone."""

    name: str
    targets: tuple[Target, ...]
    soft: bool = False


@dataclass(frozen=True, slots=True)
class _Aim:
    """A target of an event, or of one that it stands for."""

    target: Target
    soft: bool


class Events:
    """The events of one configuration, cascades resolved; those that it names have to exist."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        by_name = {event.name: event for event in events}
        self._aims = {name: _resolved(name, by_name) for name in by_name}

    def __contains__(self, name: str) -> bool:
        return name in self._aims

    def __iter__(self) -> Iterator[str]:
        return iter(self._aims)

    def purges(
        self,
        name: str,
        context: Mapping[str, JsonValue],
        *,
        key_prefix: str,
        dry_run: bool = False,
    ) -> list[Purge]:
        """What to purge when the event happens, each once. Raises `BadPurge`."""
        purges = [
            aim.target.purge(context, key_prefix=key_prefix, soft=aim.soft, dry_run=dry_run)
            for aim in self._aims[name]
        ]
        return list(dict.fromkeys(purges))


def _parts(value: str) -> tuple[_Part, ...]:
    parts: list[_Part] = []
    at = 0
    while at < len(value):
        part = _PART.match(value, at)
        if part is None:
            raise ValueError(
                "a place is a name in braces, such as {model}; letters, digits, `.`, `_` and `-`"
            )
        parts.append(part["text"] or _Place(part["place"]))
        at = part.end()
    return tuple(parts)


def _told(name: str, context: Mapping[str, JsonValue]) -> str:
    value = context.get(name)
    if value is None:
        raise BadPurge(f"The context lacks {name!r}, which this event needs.", name)
    if isinstance(value, list | dict):
        raise BadPurge(f"{name} must be a text or a number.", name)
    text = value if isinstance(value, str) else canonical_json(value).decode()
    if not text.strip():
        raise BadPurge(f"{name} must not be empty.", name)
    return text


def _resolved(name: str, events: Mapping[str, Event]) -> tuple[_Aim, ...]:
    """The targets of an event and of all that it stands for, each once."""
    aims: dict[_Aim, None] = {}
    reached, ahead = {name}, [name]
    for each in ahead:  # grows meanwhile
        event = events[each]
        for target in event.targets:
            if target.kind is not TargetKind.EVENT:
                aims[_Aim(target, event.soft)] = None
            elif target.value is not None and target.value not in reached:
                reached.add(target.value)
                ahead.append(target.value)
    return tuple(aims)
