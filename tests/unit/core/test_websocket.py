"""WebSockets on their way through: who asks for one, where frames end, with which code they close."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.websocket import (
    NO_CODE,
    FrameWatch,
    asks_for_websocket,
    close_frame,
    offered_key,
    without_offered_key,
)
from proxy.core.wire import Headers

ASKED: Headers = ((b"connection", b"keep-alive, Upgrade"), (b"upgrade", b"WebSocket"))


def frame(opcode: int, payload: bytes, mask: bytes = b"", long: int | None = None) -> bytes:
    """One frame; `long` spells the length in 2 or 8 bytes though fewer would do."""
    size = len(payload)
    flag = 0x80 if mask else 0
    if long is None:
        long = 0 if size < 126 else 2 if size < 65_536 else 8
    length = bytes([flag | {0: size, 2: 126, 8: 127}[long]]) + (
        size.to_bytes(long) if long else b""
    )
    masked = (
        bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload)) if mask else payload
    )
    return bytes([0x80 | opcode]) + length + mask + masked


FRAMES = st.builds(
    frame,
    st.sampled_from([0, 1, 2, 9, 10]),
    st.binary(max_size=300),
    st.one_of(st.just(b""), st.binary(min_size=4, max_size=4)),
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 400), max_size=12))
def test_B60_boundaries_are_found_however_the_bytes_are_cut(
    frames: list[bytes], cuts: list[int]
) -> None:
    whole = b"".join(frames)
    ends, total = {0}, 0
    for each in frames:
        total += len(each)
        ends.add(total)
    watch, position = FrameWatch(), 0
    for size in [*cuts, len(whole) + 1]:
        piece = whole[position : position + size]
        told = watch.feed(piece)
        within = [end - position for end in ends if position < end <= position + len(piece)]
        assert told == max(within, default=0)
        position += len(piece)
        assert watch.at_boundary == (position in ends)
    assert watch.close_code is None


@pytest.mark.parametrize("mask", [b"", b"\x01\x02\x03\x04"])
@pytest.mark.parametrize("long", [0, 2, 8])
@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"\x03\xe8", 1000), (b"\x0f\xa0bye", 4000), (b"", NO_CODE), (b"\x03", NO_CODE)],
)
def test_B60_the_code_of_a_close_is_read(payload: bytes, code: int, long: int, mask: bytes) -> None:
    raw = frame(1, b"before") + frame(8, payload, mask, long)
    watch = FrameWatch()

    for place in range(len(raw)):
        assert watch.close_code is None
        watch.feed(raw[place : place + 1])

    assert watch.close_code == code
    assert watch.at_boundary


@given(st.binary(max_size=500))
def test_B60_what_is_no_websocket_harms_nobody(raw: bytes) -> None:
    watch = FrameWatch()

    assert 0 <= watch.feed(raw) <= len(raw)


def test_B44_a_close_frame_of_a_server() -> None:
    watch = FrameWatch()

    raw = close_frame(1001, "shutdown")

    assert raw == b"\x88\x0a\x03\xe9shutdown"
    assert watch.feed(raw) == len(raw)
    assert watch.close_code == 1001


@pytest.mark.parametrize(
    ("method", "version", "headers", "asks"),
    [
        ("GET", "1.1", ASKED, True),
        ("GET", "1.1", ((b"connection", b"close"), *ASKED), True),
        ("GET", "1.1", ((b"connection", b"upgrade"), (b"upgrade", b"h2c, websocket")), True),
        ("POST", "1.1", ASKED, False),
        ("GET", "1.0", ASKED, False),
        ("GET", "1.1", ASKED[:1], False),
        ("GET", "1.1", ASKED[1:], False),
        ("GET", "1.1", ((b"connection", b"upgrade"), (b"upgrade", b"h2c")), False),
    ],
)
def test_B60_who_asks_for_a_websocket(
    method: str, version: str, headers: Headers, asks: bool
) -> None:
    assert asks_for_websocket(method, version, headers) is asks


def test_B69_a_key_among_the_subprotocols_is_found_and_taken_out() -> None:
    protocols = b"realtime,openai-insecure-api-key.sk-1 , openai-beta.realtime-v1"
    headers = [(b"a", b"1"), (b"sec-websocket-protocol", protocols)]

    assert offered_key(tuple(headers)) == b"sk-1"
    assert without_offered_key(headers) == [
        (b"a", b"1"),
        (b"sec-websocket-protocol", b"realtime, openai-beta.realtime-v1"),
    ]
    alone = [(b"sec-websocket-protocol", b"openai-insecure-api-key.sk-1")]
    assert without_offered_key(alone) == []
    assert offered_key(((b"sec-websocket-protocol", b"realtime"),)) is None
