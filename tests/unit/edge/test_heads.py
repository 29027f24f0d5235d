"""Heads are known by all of their bytes but the digits of a length, and by nothing less."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.access.base import Identity
from proxy.core.wire import Endpoint, Headers
from proxy.edge.heads import Head, KnownHeads, keeps_connection

LINES = (
    b"POST /v1/chat/completions HTTP/1.1",
    b"Host: proxy",
    b"Authorization: Bearer sk-1",
    b"Content-Length: 2",
    b"Content-Type: application/json",
)


def request(*lines: bytes, body: bytes = b"{}") -> bytes:
    return b"\r\n".join([*lines, b"", body])


def parsed(*lines: bytes) -> Headers:
    """The headers as the parser gives them."""
    pairs = [line.partition(b":") for line in lines[1:]]
    return tuple([(name.lower(), value.strip()) for name, _, value in pairs])


def head(headers: Headers = parsed(*LINES)) -> Head:  # noqa: B008  # a tuple
    return Head(Endpoint.CHAT, "/chat/completions", "", headers, Identity(credential="c"))


def known(max_bytes: int = 100_000) -> KnownHeads:
    heads = KnownHeads(max_bytes)
    heads.learn(request(*LINES), head())
    return heads


def test_a_head_is_known_again_whatever_the_length_of_the_body() -> None:
    heads = known()
    for length in (2, 0, 9, 10, 123456):
        lines = [line.replace(b": 2", b": %d" % length) for line in LINES]
        received = request(*lines, body=b"abc")

        found = heads.find(received)

        assert found is not None
        assert found.head == head()
        assert received[found.body_at :] == b"abc"
        assert found.end == found.body_at + length


@pytest.mark.parametrize("at", range(len(request(*LINES)) - 2))
def test_B70_any_other_byte_makes_it_unknown(at: int) -> None:
    heads = known()
    received = bytearray(request(*LINES))
    received[at] ^= 1

    found = heads.find(bytes(received))

    # But for the digits: that is another length.
    assert found is None or (received[at : at + 1].isdigit() and found.end != len(received))


@given(st.binary(max_size=40), st.integers(0, len(request(*LINES)) - 3))
@example(b"\n", len(request(*LINES)) - 3)
def test_B70_nothing_put_in_makes_it_another_request(piece: bytes, at: int) -> None:
    """Bytes slipped in anywhere in the head: unknown, or digits of the length."""
    raw = request(*LINES)
    received = raw[:at] + piece + raw[at:]

    found = known().find(received)

    # Before the last line end, a line end is put in as well behind the head as into it.
    if found is not None and piece and not received.startswith(raw[:-2]):
        digits = raw.index(b": 2") + 2
        assert piece.isdigit()
        assert digits <= at <= digits + 1


@pytest.mark.parametrize(
    "length", [b"", b"02", b"00", b"-1", b"+2", b"2 ", b" 2,2", b"0x2", b"2_0", b"9" * 10, b"\xb2"]
)
def test_B73_a_length_that_is_no_plain_number_is_left_to_the_parser(length: bytes) -> None:
    lines = [line.replace(b": 2", b": " + length) for line in LINES]

    assert known().find(request(*lines)) is None


@pytest.mark.parametrize(
    "received", [b"", b"\r\n\r\n", b"POST", request(*LINES)[:60], request(*LINES[:3])]
)
def test_what_is_no_whole_head_with_a_length_is_unknown(received: bytes) -> None:
    assert known().find(received) is None


@pytest.mark.parametrize(
    "line",
    [
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"Connection: close",
        b"Connection: keep-alive, x",
        b"Proxy-Connection: close",
    ],
)
def test_B10_a_head_after_which_more_happens_is_not_learned(line: bytes) -> None:
    heads = KnownHeads(100_000)
    heads.learn(request(*LINES, line), head(parsed(*LINES, line)))

    assert heads.find(request(*LINES, line)) is None
    assert not keeps_connection(parsed(*LINES, line))


@pytest.mark.parametrize("line", [b"Connection: Keep-Alive", b"Proxy-Connection: keep-alive"])
def test_B10_a_head_that_says_what_http_takes_for_granted_is_learned(line: bytes) -> None:
    heads = KnownHeads(100_000)
    lines = (*LINES, line)
    heads.learn(request(*lines), head(parsed(*lines)))

    assert heads.find(request(*lines)) is not None


@pytest.mark.parametrize(
    ("raw", "headers"),
    [
        (request(*LINES) + b"\r\n", parsed(*LINES)),
        (b"\r\n" + request(*LINES), parsed(*LINES)),
        (request(*LINES)[:-1], parsed(*LINES)),
        (request(*LINES).replace(b"\r\nHost", b"\nHost"), parsed(*LINES)),
        (request(*LINES), parsed(*LINES)[1:]),
        (request(*LINES), (*parsed(*LINES), (b"x", b"y"))),
        (request(*LINES[:3], b"X: a\r\n b", *LINES[3:]), parsed(*LINES)),
    ],
    ids=["more-after", "more-before", "less", "bare-lf", "fewer", "more", "folded"],
)
def test_B73_what_the_parser_may_have_cut_elsewhere_is_not_learned(
    raw: bytes, headers: Headers
) -> None:
    heads = KnownHeads(100_000)
    heads.learn(raw, head(headers))

    assert heads.find(request(*LINES)) is None
    assert heads.find(raw) is None


def test_B56_the_oldest_go_and_all_that_is_held_is_bounded() -> None:
    heads = KnownHeads(10_000)
    raws = []
    for number in range(20):
        lines = (*LINES, b"X-Number: %d" % number)
        raws.append(request(*lines))
        heads.learn(raws[-1], head(parsed(*lines)))

    held = [heads.find(raw) is not None for raw in raws]
    assert 0 < sum(held) < 10
    assert held == sorted(held), "the last ones"

    heads.clear()
    assert not any(heads.find(raw) for raw in raws)


def test_B56_one_that_is_longer_than_all_may_be_is_not_held() -> None:
    heads = KnownHeads(5_000)
    lines = (*LINES, b"X: " + b"x" * 5_000)
    heads.learn(request(*LINES), head())
    heads.learn(request(*lines), head(parsed(*lines)))

    assert heads.find(request(*lines)) is None
    assert heads.find(request(*LINES)) is not None


def test_B56_thousands_of_short_headers_count_for_what_they_take() -> None:
    heads = KnownHeads(1_000_000)
    lines = (*LINES, *[b"ab:"] * 10_000)
    heads.learn(request(*lines), head(parsed(*lines)))

    assert heads.find(request(*lines)) is None, "some 110 bytes for each of them"
