"""What the parts of `bench_coalesce` share: settings, questions, crowds that are checked."""

import asyncio
import hashlib
import itertools
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import orjson
import uvloop

from bench.crowd import Caller, Heard
from bench.processes import Running, get

GOAL_CALLS = 1

T = TypeVar("T")
_fresh = itertools.count(time.time_ns())


def rules(coalesce: str = "shared") -> dict[str, Any]:
    """One rule for all chat."""
    rule = {"model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": 600}
    return {"rules": [rule | {"coalesce": coalesce}]}


def question(*, stream: bool) -> bytes:
    """A body that nobody has sent before."""
    message = {"role": "user", "content": f"Question {next(_fresh)}"}
    return orjson.dumps({"model": "gpt-4o", "stream": stream, "messages": [message]})


def calls_for(behind: Running, body: bytes) -> list[float]:
    """When the upstream was asked this; monotonic seconds."""
    calls: dict[str, list[float]] = orjson.loads(get(behind, "/calls"))
    return calls.get(hashlib.sha256(body).hexdigest(), [])


def at_share(ordered: Sequence[float], share: float) -> float:
    """The figure that this share of them does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def check_all_good(heard: Sequence[Heard]) -> None:
    """Raises AssertionError where an answer is no good one, or not whole."""
    for each in heard:
        assert each.status == 200, (each.status, bytes(each.body[:300]))
        whole = each.body.endswith(b"}") or each.body.endswith(b"data: [DONE]\n\n")
        assert whole, bytes(each.body[-100:])


async def hang_up(crowd: Sequence[Caller]) -> None:
    """Close all connections, and leave the servers a moment to notice."""
    for caller in crowd:
        caller.hang_up()
    await asyncio.sleep(0.05)


def run_turn(turn: Coroutine[Any, Any, T]) -> T:
    """On the faster loop: what the client takes is part of the times."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(turn)


def verdict(*, reached: bool) -> str:
    """The last words of a report."""
    return "**Reached.**" if reached else "**Missed.**"
