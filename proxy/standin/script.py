"""Scripts: how a request is answered where that differs from the plain, good answer."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import orjson

from proxy.standin.record import Recorded


class Close(StrEnum):
    """How a connection is cut."""

    FIN = "fin"  # in order, after what was written has left
    RESET = "reset"  # hard (TCP RST), what is still buffered is lost


@dataclass(frozen=True, slots=True)
class Script:
    """One scripted answer; every member has a JSON spelling, for the `x-standin-script` header.

    A *piece* is one write of the body: an event of a stream, or the whole of a JSON body, unless
    `split_bytes` cuts the body otherwise.
    """

    # The answer as a whole. `body` replaces the plain body; a str goes out as it is, other values
    # as JSON. `raw` is written to the socket in place of any HTTP answer.
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: Any = None
    content_type: str | None = None
    raw: str | None = None

    # What a chat answer says.
    content: str | None = None
    tokens: int | None = None
    finish_reason: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    arguments: str | None = None
    extra: dict[str, Any] | None = None
    usage: bool = True

    # How a stream ends. `error_event` is sent after `error_after` events, and is the last one.
    done: bool = True
    error_event: Any = None
    error_after: int = 0

    # How an embeddings answer is wrong.
    shuffle: bool = False
    drop_items: int = 0

    # How it leaves. `hold` names a gate (`StandIn.gate`) to wait for: before the status line, or
    # after `hold_after` pieces. The connection is cut after `close_after` pieces.
    hold: str | None = None
    hold_after: int | None = None
    close_after: int | None = None
    close: Close = Close.FIN
    close_before_answer: bool = False
    split_bytes: int | None = None
    piece_seconds: float | None = None
    first_seconds: float | None = None
    encoding: str | None = None
    chunked: bool = False

    @classmethod
    def parse(cls, text: str | bytes) -> "Script":
        """From the JSON of an `x-standin-script` header. Raises ValueError on what is no script."""
        members = orjson.loads(text)
        known = {field.name for field in fields(cls)}
        if not isinstance(members, dict) or not members.keys() <= known:
            raise ValueError(f"a script is an object with members out of {sorted(known)}")
        if "headers" in members:
            members["headers"] = tuple((str(k), str(v)) for k, v in members["headers"])
        if "close" in members:
            members["close"] = Close(members["close"])
        return cls(**members)


PLAIN = Script()


@dataclass(slots=True)
class Standing:
    """A script in force: for the next `left` requests that match (None: for all)."""

    script: Script
    left: int | None
    matches: Callable[[Recorded], bool]


def _error(
    status: int, message: str, kind: str, code: str | None, *headers: tuple[str, str]
) -> Script:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Script(status=status, headers=headers, body={"error": error})


def rate_limited(retry_after: str | None = "20", *headers: tuple[str, str]) -> Script:
    """429, with `Retry-After` (seconds or a date) unless that is None."""
    wait = () if retry_after is None else (("retry-after", retry_after),)
    return _error(
        429, "Rate limit reached for requests.", "requests", "rate_limit_exceeded", *wait, *headers
    )


def out_of_quota() -> Script:
    """429 that waiting does not cure."""
    message = "You exceeded your current quota, please check your plan and billing details."
    return _error(429, message, "insufficient_quota", "insufficient_quota")


def unauthorised() -> Script:
    """401 for a key that is not known."""
    return _error(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key")


def deactivated() -> Script:
    """401 for an account that was closed."""
    message = "Your account has been deactivated."
    return _error(401, message, "invalid_request_error", "account_deactivated")


def server_error(status: int = 500) -> Script:
    """A 5xx with the usual envelope."""
    message = "The server had an error while processing your request. Sorry about that!"
    return _error(status, message, "server_error", None)


def error_in_ok() -> Script:
    """Status 200 with an error for a body, as some gateways send it."""
    return _error(200, "The model is overloaded.", "server_error", "overloaded")
