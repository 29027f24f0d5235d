"""Keys that an upstream repeats in its errors."""

import gzip
from collections.abc import Callable
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProxyError
from proxy.upstream.base import UpstreamRequest
from proxy.upstream.config import KeySecret
from proxy.upstream.masking import Mask
from tests.unit.upstream.scripted import Answer, World, body_of, credential, up

KEY = "sk-abcabcabc-0123456789"
SHOWN = KeySecret(KEY).fingerprint.ljust(len(KEY), "*")
ERROR = '{"error": {"message": "Who is %s?", "code": "unknown"}}'

pytestmark = pytest.mark.anyio


@given(
    st.lists(st.sampled_from([KEY, KEY[:5], KEY[3:], "sk-", "abc", " ", "s"]), max_size=8),
    st.lists(st.integers(0, 80), max_size=6),
)
def test_B69_a_key_is_masked_in_any_split(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts).encode()
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    mask = Mask(KeySecret(KEY))
    pieces = [mask.feed(text[a:b]) for a, b in pairwise(at)]
    assert b"".join(pieces) + mask.flush() == text.replace(KEY.encode(), SHOWN.encode())


def repeats(status: int) -> Callable[[UpstreamRequest], Answer]:
    def answer(request: UpstreamRequest) -> Answer:
        key = credential(request)
        return Answer(status, (ERROR % key).encode(), ((b"X-Echo", b"Bearer " + key.encode()),))

    return answer


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_B69_no_error_shows_the_key_that_it_was_asked_with(status: int) -> None:
    for keys in ((KEY,), (KEY, KEY.upper())):
        world = World(up("up", *keys))
        world.on(any=[repeats(status)])
        try:
            exchange = await world.send()
        except ProxyError as error:
            shown = repr(error)
        else:
            shown = repr((await body_of(exchange), exchange.response.headers))
            assert "Who is key-" in shown
        assert not any(key in shown for key in keys)


@pytest.mark.parametrize(
    ("coding", "pack"), [(b"gzip", gzip.compress), (b"zstd", zstandard.compress)]
)
async def test_B69_a_coded_error_that_shows_the_key_is_passed_on_plain(
    coding: bytes, pack: Callable[[bytes], bytes]
) -> None:
    world = World(up("up", KEY))
    packed = pack((ERROR % KEY).encode())
    headers = ((b"Content-Encoding", coding), (b"Content-Length", b"%d" % len(packed)))
    world.on(any=[Answer(404, packed, headers)])
    exchange = await world.send()
    body = await body_of(exchange)
    assert body == (ERROR % SHOWN).encode()
    assert exchange.response.headers == ((b"content-length", b"%d" % len(body)),)
    await exchange.response.aclose()
    assert world.in_flight() == 0


async def test_B60_errors_that_show_no_key_pass_as_they_came() -> None:
    world = World(up("up", KEY))
    packed = gzip.compress((ERROR % "you").encode())
    answer = Answer(404, packed, ((b"Content-Encoding", b"gzip"),))
    world.on(any=[answer])
    exchange = await world.send()
    assert (await body_of(exchange), exchange.response.headers) == (packed, answer.headers)


async def test_B60_words_that_stand_for_a_key_where_there_is_none_are_not_masked() -> None:
    world = World(up("up", "ollama"))
    world.on(any=[Answer(404, (ERROR % "ollama").encode())])
    exchange = await world.send()
    assert await body_of(exchange) == (ERROR % "ollama").encode()
