"""With the hot path and without it, a hit is the same answer, byte for byte."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proxy.standin import start_standin
from tests.integration.contract import chat
from tests.integration.hotpath import (
    CHAT,
    EMBEDDINGS,
    OFF,
    HotProxy,
    Line,
    Reply,
    Starter,
    SteadyClock,
    chunked_request,
    request,
)
from tests.integration.servers import merged


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


PLAIN: Mapping[str, Any] = {}
EXPOSED = {"cache_settings": {"expose_key": True}}
ADMIN = {"admin": {"key_hashes": [hashed("adm-1")]}}
KEYS = {
    "clients": [{"name": "ann", "key_hashes": [hashed("mp-ann")]}],
    "upstreams": {"openai": {"api_keys": ["sk-pool"]}},
}
EMBED = {"model": "text-embedding-3-small", "input": ["amber"]}


@dataclass(frozen=True)
class Case:
    """One kind of hit: settings, and the request."""

    settings: Mapping[str, Any]
    raw: bytes
    told: tuple[str, ...] = field(default=())
    """What the answer has to show, so that the case is what its name says."""


CASES = {
    "json": Case(PLAIN, request(), ('"chat.completion"',)),
    "stream": Case(PLAIN, request(body=chat(stream=True)), ("text/event-stream", "[DONE]")),
    "stream-usage": Case(
        PLAIN,
        request(body=chat(stream=True, stream_options={"include_usage": True})),
        ('"usage":{', "[DONE]"),
    ),
    "embeddings": Case(PLAIN, request(target=EMBEDDINGS, body=EMBED), ('"embedding"',)),
    "embeddings-base64": Case(
        PLAIN,
        request(target=EMBEDDINGS, body={**EMBED, "encoding_format": "base64"}),
        ('"embedding":"',),
    ),
    "client-key": Case(KEYS, request(key="mp-ann"), ("x-cache: HIT",)),
    "expose-key": Case(EXPOSED, request(), ('key="',)),
    "admin": Case(ADMIN, request("x-admin-key: adm-1"), ('key="',)),
    "wrong-admin": Case(ADMIN, request("x-admin-key: adm-2")),
    "query": Case(PLAIN, request(target=f"{CHAT}?api-version=2")),
    "no-identity": Case(
        PLAIN, request("accept-encoding: gzip, identity;q=0"), ("content-encoding: gzip",)
    ),
    "chunked": Case(PLAIN, chunked_request()),
    "no-store": Case(PLAIN, request("cache-control: no-store")),
    "connection-kept": Case(PLAIN, request("connection: keep-alive")),
    "connection-named": Case(PLAIN, request("connection: keep-alive, x-some")),
    "blank-line-first": Case(PLAIN, b"\r\n" + request()),
    "blank-line-after": Case(PLAIN, request() + b"\r\n"),
}
# These are hits, but no plain ones: they are parsed each time.
PARSED = {"no-store", "connection-named"}


def varying(raw: bytes) -> bytes:
    """The answer without what may differ from hit to hit."""
    raw = re.sub(rb"\r\nx-request-id: \S+\r\n", b"\r\nx-request-id: -\r\n", raw)
    raw = re.sub(rb"\r\nage: \d+\r\n", b"\r\nage: -\r\n", raw)
    return re.sub(rb"; ttl=\d+", b"; ttl=-", raw)


class Pair:
    """Two proxies with the same settings and entries; one of them has no hot path."""

    def __init__(self, starter: Starter, settings: Mapping[str, Any], directory: Path) -> None:
        # Both are at the same moment: what is told of time has to be the same too.
        clock = SteadyClock()
        shared = {
            "store": {
                "tiers": ["memory", "disk"],
                "disk": {"path": str(directory / "cache.sqlite3")},
            }
        }
        self.on: HotProxy = starter(merged(settings, shared), clock=clock)
        self.off: HotProxy = starter(merged(merged(settings, shared), OFF), clock=clock)
        self.clock = clock

    def hits(self, raw: bytes) -> Iterator[tuple[Reply, Reply, int, int]]:
        """Five hits each, with the number of requests that were parsed for each."""
        with Line(self.off) as off, Line(self.on) as on:
            assert off.ask(raw.replace(b"cache-control: no-store\r\n", b"")).status == 200
            self.off.entries_written()
            # The first hit comes from disk, the second one from memory: that one can be repeated.
            assert on.ask(raw).x_cache == on.ask(raw).x_cache == "HIT"
            for _ in range(5):
                self.clock.advance(7)
                with_it, parsed_on = self.on.parsed_by(lambda: on.ask(raw))
                without, parsed_off = self.off.parsed_by(lambda: off.ask(raw))
                yield with_it, without, parsed_on, parsed_off


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[int, Pair]]:
    """A pair for each of the settings, by their identity."""
    directory = tmp_path_factory.mktemp("pairs")
    with start_standin() as standin, Starter(standin.base_url, directory) as starter:
        made: dict[int, Pair] = {}
        for each in (PLAIN, EXPOSED, ADMIN, KEYS):
            (directory / str(len(made))).mkdir()
            made[id(each)] = Pair(starter, each, directory / str(len(made)))
        yield made


@pytest.mark.parametrize("name", CASES)
def test_B10_a_hot_hit_is_the_ordinary_one_byte_for_byte(
    name: str, pairs: Mapping[int, Pair]
) -> None:
    case = CASES[name]
    ids = set()

    for hot, plain, parsed_on, parsed_off in pairs[id(case.settings)].hits(case.raw):
        assert hot.x_cache == plain.x_cache == "HIT"
        assert varying(hot.raw) == varying(plain.raw)
        # The clock is the same for both, so that only the id is left to differ.
        without_ids = [
            [pair for pair in reply.lines if pair[0] != "x-request-id"] for reply in (hot, plain)
        ]
        assert without_ids[0] == without_ids[1]
        assert parsed_on == (name in PARSED), "the parser saw it, or not"
        assert parsed_off == 1
        for text in case.told:
            assert text.encode() in hot.raw
        ids |= {hot["x-request-id"], plain["x-request-id"]}

    assert len(ids) == 10, "each answer has an id of its own"


def test_B12_the_key_is_shown_to_the_admin_alone(pairs: Mapping[int, Pair]) -> None:
    proxy = pairs[id(ADMIN)].on
    body = chat("Who sees the key?")
    admin, other = request("x-admin-key: adm-1", body=body), request(body=body)

    with Line(proxy) as line:
        replies = [line.ask(raw) for raw in (admin, other) * 4]
        _, parsed = proxy.parsed_by(lambda: (line.ask(admin), line.ask(other)))

    assert parsed == 0
    assert ["key=" in reply["cache-status"] for reply in replies] == [True, False] * 4


@pytest.mark.parametrize(
    "other",
    [
        request(key="sk-2", body=chat("Whose?")),
        request(key=None, body=chat("Whose?")),
        request("x-api-key: sk-2", body=chat("Whose?")),
        request("openai-organization: other", body=chat("Whose?")),
        request(target=f"{CHAT}?tenant=2", body=chat("Whose?")),
        request(body=chat("Whose? ")),
    ],
    ids=["other-key", "no-key", "second-key", "other-account", "other-query", "other-body"],
)
def test_B70_no_other_request_gets_the_answer(other: bytes, pairs: Mapping[int, Pair]) -> None:
    proxy = pairs[id(PLAIN)].on
    raw = request(body=chat("Whose?"))

    with Line(proxy) as line:
        for _ in range(3):
            line.ask(raw)
        own, parsed = proxy.parsed_by(lambda: line.ask(raw))
        theirs = line.ask(other)

    assert parsed == 0
    assert theirs.x_cache == "MISS"
    assert theirs.body != own.body
