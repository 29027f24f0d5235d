"""A request with its answer, and what that is worth: whole, broken off, shortened, or wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from bench.stamped import Said, Stamp, Wrong, check_chat, check_embeddings, check_through


class Came(StrEnum):
    """How a request ended, as its client saw it."""

    WHOLE = "whole"  # the right answer, all of it
    WRONG = "wrong"  # an answer, but not the right one
    SHORTENED = "shortened"  # an answer that ends in good order before its end
    BROKEN = "broken"  # an answer that broke off, and was seen to
    STATUS = "status"  # an error with a status
    NO_ANSWER = "no answer"  # no connection, or none that brought an answer
    HUNG = "hung"  # nothing for too long
    LEFT = "left"  # the client itself went away


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to be sent. `leaves_after` seconds the client goes away, answered or not.

    `path`, from `/v1` on, is that of a request which passes through; its body is empty for a GET.
    """

    kind: str
    proxy: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    leaves_after: float | None = None
    path: str = ""

    @property
    def model(self) -> str:
        """The model that it names; what passes through names none that the proxy reads."""
        return "" if self.path else str(self.body["model"])

    @property
    def is_chat(self) -> bool:
        return "messages" in self.body

    @property
    def items(self) -> list[str]:
        """The inputs of an embeddings request."""
        given = self.body["input"]
        return [given] if isinstance(given, str) else list(given)


@dataclass(slots=True)
class Result:
    """What came of an `Ask`; times are monotonic seconds."""

    ask: Ask
    began: float
    ended: float = 0.0
    came: Came = Came.LEFT
    status: int = 0
    x_cache: str = ""
    cache_status: str = ""
    stamps: tuple[Stamp, ...] = ()
    note: str = ""

    @property
    def collapsed(self) -> bool:
        return "; collapsed" in self.cache_status


def note(result: Result, came: Came, why: str) -> None:
    """It ended so."""
    result.came, result.note = came, why


def judge_answer(result: Result, content: bytes, content_type: str) -> None:
    """What an answer that came to its end is; `result` has its status."""
    ask = result.ask
    if result.status != 200:
        note(result, Came.STATUS, content[:400].decode(errors="replace"))
        return
    try:
        if ask.path:
            result.stamps = (check_through(ask.path, ask.body, _read_json(content)),)
        elif not ask.is_chat:
            result.stamps = tuple(check_embeddings(ask.body, _read_json(content)))
        elif ask.body.get("stream"):
            said = read_stream(content, content_type)
            wanted = bool((ask.body.get("stream_options") or {}).get("include_usage"))
            result.stamps = (check_chat(ask.body, said, usage_wanted=wanted),)
        else:
            said = _read_completion(content, content_type)
            result.stamps = (check_chat(ask.body, said, usage_wanted=True),)
        result.came = Came.WHOLE
    except orjson.JSONDecodeError as cut:
        note(result, Came.SHORTENED, f"{cut}: {content[-60:]!r}")
    except Shortened as short:
        note(result, Came.SHORTENED, str(short))
    except BrokenOff as broken:
        note(result, Came.BROKEN, str(broken))
    except Wrong as wrong:
        note(result, Came.WRONG, str(wrong))
    except (KeyError, TypeError, IndexError, ValueError) as shape:
        note(result, Came.WRONG, f"{type(shape).__name__} {shape}: {content[:200]!r}")


class Shortened(Exception):
    """An answer that ends in good order before its end."""


class BrokenOff(Exception):
    """An answer with status 200 that says itself that it failed."""


def read_stream(content: bytes, content_type: str) -> Said:
    """A whole stream, put together. Raises Shortened, BrokenOff, and Wrong for what is none."""
    if content_type != "text/event-stream":
        raise Wrong(f"{content_type} for a stream")
    events = [event.removeprefix("data: ") for event in content.decode().split("\n\n")]
    if "[DONE]" not in events:
        if any(event.startswith('{"error"') for event in events):
            raise BrokenOff(f"an error event: {events[-2:]}")
        raise Shortened(f"{len(events)} events, no [DONE]")
    if events[-2:] != ["[DONE]", ""]:
        raise Wrong(f"{events[-2:]} at the end")
    text, finish, usage = "", None, None
    for event in events[:-2]:
        chunk = orjson.loads(event)
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
    return Said(text, finish, usage)


def _read_completion(content: bytes, content_type: str) -> Said:
    if content_type != "application/json":
        raise Wrong(f"{content_type} for a completion")
    answer = _read_json(content)
    (choice,) = answer["choices"]
    return Said(choice["message"]["content"], choice["finish_reason"], answer["usage"])


def _read_json(content: bytes) -> Any:
    answer = orjson.loads(content)
    if isinstance(answer, dict) and "error" in answer:
        raise BrokenOff(f"an error with status 200: {content[:200]!r}")
    return answer
