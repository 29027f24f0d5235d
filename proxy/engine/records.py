"""What a leader says of its flight to followers elsewhere: a head, pieces of the body, its end.

As bytes, each begins with a letter for its kind.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias, assert_never

import orjson

from proxy.core.entry import Usage
from proxy.engine.flight import Flight, Head
from proxy.errors import StoreUnavailable

# Of heads whose members mean the same.
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class LeaderCall:
    """What a leader elsewhere says of its call, for purges to look at."""

    key: str
    rule: str
    model: str
    tenant: str
    tags: tuple[str, ...]
    stored_at: float
    generation: int


@dataclass(frozen=True, slots=True)
class Headed:
    """The first record. Followers filter the usage chunk out for those who did not ask for it."""

    call: LeaderCall
    head: Head

    @classmethod
    def of(cls, flight: Flight, head: Head) -> "Headed":
        """What is to be said of this flight."""
        call = LeaderCall(
            key=flight.key,
            rule=flight.rule,
            model=flight.model,
            tenant=flight.tenant,
            tags=flight.tags,
            stored_at=flight.stored_at,
            generation=flight.generation,
        )
        return cls(call, head)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next bytes of the stream, in its plain form."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is whole, or at least has its terminal event; what it cost, if that is known."""

    usage: Usage | None


Record: TypeAlias = Headed | Piece | Ended


def written(record: Record) -> bytes:
    """The record as it is published."""
    match record:
        case Headed(call, head):
            return b"h" + orjson.dumps(
                {
                    "version": _VERSION,
                    "call": asdict(call),
                    "status": head.status,
                    "headers": [
                        (name.decode("latin-1"), value.decode("latin-1"))
                        for name, value in head.headers
                        if name.lower() != b"set-cookie"
                    ],
                    "upstream": head.upstream,
                    "has_usage": head.has_usage,
                }
            )
        case Piece(raw):
            return b"p" + raw
        case Ended(usage):
            return b"e" + orjson.dumps(None if usage is None else asdict(usage))
        case _:
            assert_never(record)


def read_record(raw: bytes) -> Record:
    """The other way. Raises `StoreUnavailable` for what this version does not understand."""
    kind, rest = raw[:1], raw[1:]
    try:
        if kind == b"p":
            return Piece(rest)
        told: dict[str, Any] | None = orjson.loads(rest)
        if kind == b"e":
            return Ended(None if told is None else Usage(**told))
        if kind == b"h" and told is not None and told["version"] == _VERSION:
            return _headed(told)
    except (ValueError, TypeError, KeyError) as error:
        raise _not_understood() from error
    raise _not_understood()


def _headed(told: dict[str, Any]) -> Headed:
    call = LeaderCall(**{**told["call"], "tags": tuple(told["call"]["tags"])})
    head = Head(
        status=told["status"],
        headers=tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in told["headers"]),
        is_stream=True,
        upstream=told["upstream"],
        has_usage=told["has_usage"],
        trims=told["has_usage"],
    )
    return Headed(call, head)


def _not_understood() -> StoreUnavailable:
    return StoreUnavailable("a leader said what is not understood here")
