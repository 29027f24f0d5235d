"""The sides of `bench_hit`: which server each is, what it is asked, and how it should answer."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench.gateways import LITELLM_HIT_HEADER, TENSORZERO_QUESTION, litellm, tensorzero
from bench.load import CONNECTIONS, Requests
from bench.nginx import STATUS_HEADER, nginx_cache, nginx_static
from bench.processes import Running, peer, proxy, redis
from bench.question import CHAT, STREAM, Question

KEYS = 512
# Such peers answer some ten requests in a second.
SLOW_SECONDS = 5
LONG = Question(words=20_000)


def long_settings(hot_path_bytes: str, longest: str) -> dict[str, Any]:
    """Room for long requests on the hot path."""
    return {"server": {"hot_path_bytes": hot_path_bytes, "hot_path_request_bytes": longest}}


class Group(StrEnum):
    """Who a side belongs to; the order is that of the reports."""

    LIMIT = "nginx"
    OURS = "magic-proxy"
    PLAIN = "plain Python servers"
    PEER = "other gateways"


@dataclass(slots=True)
class Around:
    """What servers need around them; whatever is started goes to `stack` and `behind`."""

    stack: ExitStack
    upstream: Running
    answer: Path
    behind: list[Running] = field(default_factory=list)

    def redis(self) -> Running:
        """One more server."""
        self.behind.append(self.stack.enter_context(redis()))
        return self.behind[-1]


Starts = Callable[[Around], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a side is.

    `outcome` is what the proxy counts for its answers, `is_hot` whether they are known by their
    bytes, `hit_header` what others say of a hit: a name, and how the value begins.
    """

    title: str
    group: Group
    starts: Starts
    requests: Requests = Requests.SAME
    question: Question = CHAT
    count: int = 1
    connections: int = CONNECTIONS
    is_cached: bool = True
    outcome: str | None = None
    is_hot: bool = False
    hit_header: tuple[str, str] | None = None
    least_seconds: int = 0


def ours(
    title: str,
    *,
    settings: Mapping[str, Any] | None = None,
    transport: str | None = None,
    **how: Any,
) -> Kind:
    """The proxy, with memory alone unless `settings` say otherwise."""

    def starts(around: Around) -> AbstractContextManager[Running]:
        given = {"store": "memory"} | dict(settings or {})
        return proxy(around.upstream, given, transport=transport)

    rest: dict[str, Any] = {"starts": starts, "outcome": "hit"} | how
    return Kind(title, Group.OURS, **rest)


def _on_redis(around: Around) -> AbstractContextManager[Running]:
    url = f"redis://127.0.0.1:{around.redis().port}/0"
    return proxy(around.upstream, {"store": {"tiers": "redis", "redis": {"url": url}}})


def _peer(name: str) -> Starts:
    return lambda around: peer(name, around.answer)


_FORWARDED: Mapping[str, Any] = {
    "requests": Requests.DISTINCT,
    "outcome": "miss",
    "is_cached": False,
}

KINDS: dict[str, Kind] = {
    "static": Kind(
        "nginx, a fixed answer",
        Group.LIMIT,
        lambda around: nginx_static(around.answer.read_bytes()),
    ),
    "nginx": Kind(
        "nginx `proxy_cache`, keyed on the body",
        Group.LIMIT,
        lambda around: nginx_cache(around.upstream),
        hit_header=(STATUS_HEADER, "HIT"),
    ),
    "hot": ours("hot: hit, repeated byte for byte", is_hot=True),
    "hot-logged": ours(
        "hot, with the request log", settings={"server": {"access_log": True}}, is_hot=True
    ),
    "hot-stream": ours("hot: streamed hit, 60 events, repeated", question=STREAM, is_hot=True),
    "warm": ours("warm: hit, other bytes but the same key", requests=Requests.SPELLED),
    "ordinary": ours(
        "hit, repeated, hot path switched off", settings={"server": {"hot_path_bytes": 0}}
    ),
    "redis": ours(
        "hit from Redis, no memory tier", starts=_on_redis, requests=Requests.CYCLED, count=KEYS
    ),
    "disk": ours(
        "hit from disk, no memory tier",
        settings={"store": "disk"},
        requests=Requests.CYCLED,
        count=KEYS,
    ),
    "miss": ours("miss, instant upstream", **_FORWARDED),
    "miss-httpx": ours("miss over httpx", transport="httpx", **_FORWARDED),
    "stream": ours("streamed miss, an event in each read", question=STREAM, **_FORWARDED),
    "hot-100k": ours(
        "hot, 100 KB asked",
        settings=long_settings("64MiB", "256KiB"),
        question=LONG,
        is_hot=True,
    ),
    "warm-100k": ours(
        "warm, 100 KB asked",
        settings=long_settings("64MiB", "256KiB"),
        question=LONG,
        requests=Requests.SPELLED,
    ),
    "asgi": Kind("ASGI application giving the same bytes", Group.PLAIN, _peer("asgi")),
    "fastapi": Kind("FastAPI route giving the same bytes", Group.PLAIN, _peer("fastapi")),
    "tensorzero": Kind(
        "TensorZero's gateway, cache hit",
        Group.PEER,
        lambda around: tensorzero(around.upstream, around.redis()),
        question=TENSORZERO_QUESTION,
    ),
    "litellm": Kind(
        "LiteLLM's proxy, hit from memory",
        Group.PEER,
        lambda around: litellm(around.upstream, None),
        hit_header=LITELLM_HIT_HEADER,
        least_seconds=SLOW_SECONDS,
    ),
    "litellm-redis": Kind(
        "LiteLLM's proxy, hit from Redis",
        Group.PEER,
        lambda around: litellm(around.upstream, around.redis()),
        hit_header=LITELLM_HIT_HEADER,
        least_seconds=SLOW_SECONDS,
    ),
}
