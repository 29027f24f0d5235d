"""B25: whole = cut anywhere, and nothing but the declared error comes out of the parser."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.recording import NotStored, StreamRecorder, UsageFilter
from proxy.core.sse import EventTooLarge, SseParser

LINES = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data",
        b"event: error",
        b": comment",
        "data: größe 😀".encode(),
        b"data: [DONE]",
        b'data: {"choices":[],"usage":{"total_tokens":1}}',
        b"",
        b"",
        b"id: 1",
    ]
)


@st.composite
def streams(draw: st.DrawFn, ends: list[bytes]) -> bytes:
    lines = draw(st.lists(st.tuples(LINES, st.sampled_from(ends)), max_size=20))
    return b"".join(line + end for line, end in lines) + draw(st.sampled_from([b"", b"data: cut"]))


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


PLACES = st.lists(st.integers(min_value=0, max_value=10_000), max_size=30)


@given(streams([b"\n", b"\r\n", b"\r"]), PLACES)
def test_B25_mixed_line_ends_cut_anywhere_tell_the_same_events(
    stream: bytes, places: list[int]
) -> None:
    whole, pieces = SseParser(), SseParser()
    told = [event[:2] for event in whole.feed(stream) if event.data or event.event]
    events = [event for piece in cut(stream, places) for event in pieces.feed(piece)]
    assert [event[:2] for event in events if event.data or event.event] == told
    assert b"".join(event.raw for event in events) + pieces.pending == stream


@given(st.sampled_from([b"\n", b"\r\n"]).flatmap(lambda end: streams([end])), PLACES)
def test_B25_the_usual_line_ends_cut_anywhere_give_the_same_bytes(
    stream: bytes, places: list[int]
) -> None:
    whole, pieces = SseParser(), SseParser()
    told = whole.feed(stream)
    assert [event for piece in cut(stream, places) for event in pieces.feed(piece)] == told
    assert pieces.at_boundary == whole.at_boundary


@given(st.sampled_from([b"\n", b"\r\n"]).flatmap(lambda end: streams([end])), PLACES)
def test_B24_the_usage_chunk_comes_out_wherever_the_stream_is_cut(
    stream: bytes, places: list[int]
) -> None:
    whole, pieces = UsageFilter(), UsageFilter()
    expected = whole.feed(stream) + whole.flush()
    assert b"".join(map(pieces.feed, cut(stream, places))) + pieces.flush() == expected


@given(st.binary(max_size=200), PLACES)
def test_B25_rubbish_raises_nothing_undeclared(stream: bytes, places: list[int]) -> None:
    parser = SseParser(max_event_bytes=20)
    recorder = StreamRecorder(store_finish_reasons={"stop"}, max_bytes=100)
    try:
        for piece in cut(stream, places):
            recorder.feed(piece)
            parser.feed(piece)
    except EventTooLarge:
        pass
    assert isinstance(recorder.finish(ended_well=True), NotStored)
