"""What the supervisor and a worker say to each other: one JSON object a line."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, TypeAlias

import orjson

Message: TypeAlias = dict[str, Any]


class Kind(StrEnum):
    """What a message is; its members in brackets."""

    READY = "ready"  # worker: it accepts connections
    BEAT = "beat"  # worker: its loop turns [families, now and then]
    ASK = "ask"  # either: a question [id, topic, body]
    REPLY = "reply"  # either: its answer [id, topic, body]


class Topic(StrEnum):
    """What a question is about. Who asks is a worker; asked are all others, and all answer."""

    METRICS = "metrics"  # what have you counted? The body is what the asker has.
    KEYS = "keys"  # what do you know of upstream keys? The body is what the asker does
    PURGED = "purged"  # have this purge in force, then answer
    RELOAD = "reload"  # of the supervisor: have these settings in force, then answer


def packed(kind: Kind, members: Mapping[str, Any] | None = None) -> bytes:
    """A message as it goes over the socket."""
    return orjson.dumps({"kind": kind, **(members or {})}, option=orjson.OPT_APPEND_NEWLINE)


class Unpacker:
    """Makes messages of what comes, however it is cut."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, received: bytes) -> Iterator[Message]:
        """The messages that are whole now."""
        *lines, rest = received.split(b"\n")
        for line in lines:
            self._parts.append(line)
            whole, self._parts = b"".join(self._parts), []
            message: Message = orjson.loads(whole)
            yield message
        if rest:
            self._parts.append(rest)
