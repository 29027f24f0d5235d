"""Trailers, read off the end of a message; h11 is the other reader."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.trailers import LONGEST_BYTES, Trailers

NAMES = (b"x-a", b"x-b", b"content-digest")
HEAD = b"HTTP/1.1 200 OK\r\nTrailer: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % b", ".join(NAMES)
LAST = b"0\r\n"
VALUES = st.text("ab0:; \t\r\n", max_size=8).filter(lambda text: not {*"\r\n"} & {*text})
FIELDS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES.map(str.encode)), max_size=4)
# What would be a last chunk, or a trailer, if it did not stand in a body.
BODIES = st.lists(st.sampled_from([b"\r\n", b"0\r\n", b"X-A: 1\r\n", b"0", b"x"]), min_size=1)


def read(
    raw: bytes, at: int = 1, names: tuple[bytes, ...] = NAMES
) -> tuple[tuple[bytes, bytes], ...]:
    """What came, of a message in pieces of `at` bytes."""
    trailers = Trailers(names)
    for begin in range(0, len(raw), at):
        trailers.feed(raw[begin : begin + at])
    return trailers.came()


def as_h11_reads(raw: bytes) -> list[tuple[bytes, bytes]]:
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(raw)
    while not isinstance(event := reader.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
    return list(event.headers)


@given(st.lists(BODIES.map(b"".join), max_size=3), FIELDS, st.integers(1, 200))
def test_B60_what_came_is_what_another_reader_finds_whatever_the_body(
    chunks: list[bytes], fields: list[tuple[bytes, bytes]], at: int
) -> None:
    body = b"".join([b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks])
    section = b"".join([b"%b: %b\r\n" % field for field in fields])
    raw = HEAD + body + LAST + section + b"\r\n"

    came = read(raw, at)

    assert list(came) == as_h11_reads(raw)
    assert came == tuple((name, value.strip(b" \t")) for name, value in fields)


@given(st.lists(st.sampled_from([b"0", b"\r\n", b"\n", b"X-A:", b" 1", b";", b"\0"]), max_size=9))
def test_B60_whatever_ends_a_message_no_field_can_end_its_line(pieces: list[bytes]) -> None:
    for _, value in read(HEAD + b"".join(pieces) + b"\r\n\r\n", 7):
        assert not {*b"\r\n\0"} & {*value}


@pytest.mark.parametrize("last", [b"0", b"000", b"0;a=b", b"0 ;a", b'0;a="x"'])
def test_B60_a_last_chunk_is_known_however_it_is_written(last: bytes) -> None:
    assert read(HEAD + last + b"\r\nX-A: 1\r\n\r\n") == ((b"x-a", b"1"),)


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n", b"X", b"\r\nHTTP/1.1 200 OK\r\n\r\n"])
def test_B60_a_message_that_does_not_end_here_has_no_trailers(end: bytes) -> None:
    assert read(HEAD + LAST + b"X-A: 1\r\n" + end) == ()


def test_B60_a_longer_section_is_left_out_whole_and_not_held() -> None:
    field = b"X-A: " + b"y" * 95 + b"\r\n"
    fits = (LONGEST_BYTES - 10) // len(field)
    assert len(read(HEAD + LAST + field * fits + b"\r\n")) == fits
    # Of one that is too long the beginning is gone: a rest of it must not pass for a last chunk.
    for size in range(LONGEST_BYTES - 20, LONGEST_BYTES + 5):
        section = b"X-A: 0\r\nX-A: " + b"y" * (size - 17) + b"\r\n\r\n"
        fits = len(b"\r\n" + LAST + section) <= LONGEST_BYTES
        assert len(read(HEAD + LAST + section, 500)) == (2 if fits else 0)


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (((b"Trailer", b"X-B, x-a"), (b"TRAILER", b"X-A")), (b"x-a", b"x-b")),
        (((b"trailer", b"Content-Digest, content-md5"),), (b"content-digest", b"content-md5")),
        (((b"trailer", b"x-a, x-hop"), (b"Connection", b"close, X-Hop")), (b"x-a",)),
        (((b"trailer", b'content-length, Set-Cookie, TE, if-match, a b, "x", ,'),), None),
        (((b"trailers", b"x-a"),), None),
        ((), None),
    ],
)
def test_B60_names_are_those_announced_that_may_pass(
    head: tuple[tuple[bytes, bytes], ...], names: tuple[bytes, ...] | None
) -> None:
    trailers = Trailers.announced(head)
    assert (trailers.names if trailers is not None else None) == names
