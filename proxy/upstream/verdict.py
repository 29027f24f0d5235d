"""What one answer, or one failure, says about the key and the upstream. A closed union."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias, assert_never


@dataclass(frozen=True, slots=True)
class KeyWorks:
    """The upstream took the key and answered."""


@dataclass(frozen=True, slots=True)
class KeyLimited:
    """The key is at a limit. `seconds` None: the upstream did not say for how long.

    `quota` is True where the account's credit is used up: waiting seconds won't help.
    """

    seconds: float | None
    quota: bool = False


@dataclass(frozen=True, slots=True)
class KeyRejected:
    """The upstream does not take the key: unknown, revoked, or its account is closed."""

    reason: str


@dataclass(frozen=True, slots=True)
class KeyUnfit:
    """The key is not taken for what was asked, and may be for other things; another one may do."""


@dataclass(frozen=True, slots=True)
class UpstreamFault:
    """The upstream or the way to it failed; this says nothing about the key.

    `again` is False where it asked not to be tried again, or not now.
    """

    reason: str
    again: bool = True


@dataclass(frozen=True, slots=True)
class Neutral:
    """The request is at fault, or it was broken off; nothing is learned about the key."""


class Trouble(StrEnum):
    """What a model refuses a request for that another model may take."""

    CONTEXT_WINDOW = "context-window"  # it is longer than this model reads
    CONTENT_POLICY = "content-policy"  # this provider's filter does not let it through


def result_of(verdict: "Verdict") -> str:
    """One word for counters."""
    match verdict:
        case KeyWorks():
            return "ok"
        case KeyLimited():
            return "key-limited"
        case KeyRejected():
            return "key-rejected"
        case KeyUnfit():
            return "key-unfit"
        case UpstreamFault():
            return "fault"
        case Neutral():
            return "refused"
        case _:
            assert_never(verdict)


Verdict: TypeAlias = KeyWorks | KeyLimited | KeyRejected | KeyUnfit | UpstreamFault | Neutral
