"""B25: any spelling of the same events is read the same."""

import pytest

from proxy.core.sse import EventTooLarge, SseEvent, SseParser


def _read(*pieces: bytes) -> list[SseEvent]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def _told(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    return [(event.event, event.data) for event in _read(*pieces)]


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (b'data: {"a":1}\n\n', [(b"", b'{"a":1}')]),
        (b'data:{"a":1}\n\n', [(b"", b'{"a":1}')]),
        (b"data:  two spaces\n\n", [(b"", b" two spaces")]),
        (b"data: a: b\n\n", [(b"", b"a: b")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\r\rdata: b\r\r", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\n\r\ndata: b\r\n\n", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\r\ndata: b\n\n", [(b"", b"a\nb")]),
        (b"data: a\r\rdata: b\n\n", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\ndata: b\ndata\n\n", [(b"", b"a\nb\n")]),
        (b"event: error\ndata: a\n\n", [(b"error", b"a")]),
        (b"data: a\nevent:ping\nid: 7\nretry: 1\n\n", [(b"ping", b"a")]),
        (b": keep-alive\n\ndata: a\n\n", [(b"", b""), (b"", b"a")]),
        (b": OPENROUTER PROCESSING\ndata: a\n\n", [(b"", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [(b"", b"a"), (b"", b"")]),
        (b"data: a\n\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"", []),
    ],
)
def test_B25_every_spelling_of_an_event(stream: bytes, told: list[tuple[bytes, bytes]]) -> None:
    assert _told(stream) == told
    assert _told(*(stream[place : place + 1] for place in range(len(stream)))) == told


def test_B25_a_character_cut_between_reads() -> None:
    stream = 'data: {"text":"größe 😀"}\n\n'.encode()
    cut = stream.index("😀".encode()) + 2
    assert _told(stream[:cut], stream[cut:]) == [(b"", stream[6:-2])]


def test_B25_a_crlf_cut_in_its_middle_is_one_line_end() -> None:
    events = _read(b"data: a\r\n\r", b"\ndata: b\r", b"\n\r\n")
    assert [event.raw for event in events] == [b"data: a\r\n\r\n", b"data: b\r\n\r\n"]


def test_B20_an_event_is_told_as_soon_as_it_ended() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\n") == []
    assert [event.data for event in parser.feed(b"\n")] == [b"a"]
    assert [event.data for event in parser.feed(b"data: b\r\r")] == [b"b"]


def test_the_raw_bytes_of_the_events_tile_the_stream() -> None:
    stream = b": hello\n\n\ndata: a\r\n\r\nevent: x\ndata:b\n\ndata: unfinished"
    parser = SseParser()
    events = parser.feed(stream)
    assert b"".join(event.raw for event in events) + parser.pending == stream


@pytest.mark.parametrize(
    ("stream", "at_boundary"),
    [
        (b"", True),
        (b"data: a\n\n", True),
        (b"data: a\n\n\n", True),
        (b"data: a\n\n\r\n", True),
        (b"data: a\n", False),
        (b"data: a\n\ndata", False),
        (b"data: a\r\n\r", False),
        (b"data: a\n\n: comment", False),
    ],
)
def test_B21_the_parser_knows_whether_it_stands_between_events(
    stream: bytes, at_boundary: bool
) -> None:
    parser = SseParser()
    parser.feed(stream)
    assert parser.at_boundary is at_boundary


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: 123456789\n\n"],
        [b"data: 1\n\ndata: 123456789\n\n"],
        [b"data: 1\n\ndata: 123456789"],
        [b"data: 123", b"4567"],
        [b"data: 1234\r\n", b"data: 5678\r\n\r\n"],
    ],
)
def test_an_event_beyond_the_bound_is_refused_with_all_that_is_unread(pieces: list[bytes]) -> None:
    parser = SseParser(max_event_bytes=12)
    for piece in pieces[:-1]:
        parser.feed(piece)
    with pytest.raises(EventTooLarge) as caught:
        parser.feed(pieces[-1])
    assert caught.value.unread == b"".join(pieces)


def test_the_bound_is_on_an_event_not_on_a_read() -> None:
    parser = SseParser(max_event_bytes=12)
    assert len(parser.feed(b"data: 1234\n\n" * 100)) == 100
