"""A stream goes on after a leader that died, where the new answer begins just as the first."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.resume import Resumption
from proxy.core.sse import WholeEvents
from proxy.errors import UpstreamProtocolError


def stream(name: str, texts: list[str]) -> list[bytes]:
    events = [
        orjson.dumps({"id": name, "created": len(name), "choices": [{"delta": {"content": text}}]})
        for text in texts
    ]
    return [b"data: " + event + b"\n\n" for event in (*events, b"[DONE]")]


TEXTS = ["Once ", "upon ", "a ", "time"]


@pytest.mark.parametrize("handed_on", range(len(TEXTS) + 1))
def test_B41_what_follows_is_handed_on_under_the_first_name(handed_on: int) -> None:
    first, second = stream("first", TEXTS), stream("second", TEXTS)
    begun = b"".join(first[:handed_on])

    rest = Resumption(begun).feed(b"".join(second))

    assert begun + rest == b"".join(first if handed_on else second)


@pytest.mark.parametrize("cut", [1, 5, 6, 20])
def test_B41_nothing_goes_on_in_the_middle_of_an_event(cut: int) -> None:
    first = stream("first", TEXTS)

    with pytest.raises(UpstreamProtocolError):
        Resumption(first[0] + first[1][:cut])


def test_B41_a_new_answer_that_ends_before_all_that_was_handed_on_is_no_continuation() -> None:
    resumption = Resumption(b"".join(stream("first", TEXTS)[:3]))
    assert resumption.feed(b"".join(stream("second", TEXTS)[:2])) == b""

    with pytest.raises(UpstreamProtocolError):
        resumption.finish()


@pytest.mark.parametrize("at", range(4))
def test_B41_comments_come_when_they_come(at: int) -> None:
    first, second = stream("first", TEXTS), stream("second", TEXTS)
    begun = b": still there\n\n" + b"".join(first[:2])
    commented = b"".join((*second[:at], b": busy\n\n", *second[at:]))

    rest = Resumption(begun).feed(commented)

    assert rest.replace(b": busy\n\n", b"") == b"".join(first[2:])


def test_B41_no_byte_but_the_name_is_changed() -> None:
    begun = b'data: {"id":"a","created":1,"choices":[]}\r\n\r\n'
    second = b'data: { "id" : "b", "created":2, "n": 12345678901234567890123, "x": 1.50 }\r\n\r\n'

    resumption = Resumption(begun)

    assert resumption.feed(begun.replace(b'"a"', b'"b"')) == b""
    assert resumption.feed(second) == second.replace(b'"b"', b'"a"').replace(b'd":2', b'd":1')


def test_B41_what_has_no_name_or_no_object_goes_on_as_it_is() -> None:
    resumption = Resumption(b"event: start\ndata: {}\n\n")
    assert resumption.feed(b"event: start\ndata: {}\n\n") == b""
    for raw in (b'data: {"id":"b"}\n\n', b"data: [1]\n\n", b'data: {"id":\ndata: "b"}\n\n'):
        assert resumption.feed(raw) == raw


@given(st.lists(st.integers(1, 40), max_size=30))
def test_B25_whole_events_pass_byte_for_byte(sizes: list[int]) -> None:
    raw = b": hello\r\n\r\n" + b"".join(stream("first", TEXTS)) + b"data: {"
    events, passed, at = WholeEvents(), b"", 0
    for size in (*sizes, len(raw)):
        passed += events.feed(raw[at : at + size])
        assert not passed or passed.endswith((b"\n\n", b"\r\n"))
        at += size
    assert passed == raw.removesuffix(b"data: {")
    assert events.flush() == b"data: {"


def test_B25_an_event_without_an_end_is_not_held_back_for_ever() -> None:
    events = WholeEvents()
    raw = b"data: " + b"x" * (9 * 1024 * 1024)

    passed = events.feed(raw[:100]) + events.feed(raw[100:])

    assert passed == raw
    assert events.feed(b"more") == b"more"
    assert events.flush() == b""


def test_B41_an_answer_that_says_something_else_is_no_continuation() -> None:
    begun = b"".join(stream("first", TEXTS)[:2])
    other = b"".join(stream("second", ["Once ", "there ", "was"]))

    with pytest.raises(UpstreamProtocolError):
        Resumption(begun).feed(other)


def test_B41_an_answer_that_ends_sooner_is_no_continuation() -> None:
    begun = b"".join(stream("first", TEXTS)[:3])

    with pytest.raises(UpstreamProtocolError):
        Resumption(begun).feed(b"".join(stream("second", TEXTS[:1])))


@given(st.integers(0, 5), st.lists(st.integers(1, 40), max_size=30))
def test_B25_any_split_of_the_new_stream_gives_the_same(handed_on: int, sizes: list[int]) -> None:
    first, second = stream("first", TEXTS), b"".join(stream("second", TEXTS))
    begun = b"".join(first[:handed_on])
    whole = Resumption(begun).feed(second)
    resumption, parts, at = Resumption(begun), b"", 0
    for size in (*sizes, len(second)):
        parts += resumption.feed(second[at : at + size])
        at += size
    assert parts == whole
