"""A stream goes on after a leader that died, where the new answer begins just as the first."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.resume import Resumption
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
def test_B41_an_event_cut_in_the_middle_is_finished_where_it_is_the_same(cut: int) -> None:
    first, second = stream("first", TEXTS), stream("second", TEXTS)
    begun = first[0] + first[1][:cut]

    assert begun + Resumption(begun).feed(b"".join(second)) == b"".join(first)


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
