"""What clients say of how long they wait."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.client_deadline import NONE, Deadlines, client_deadline

OURS = b"x-request-timeout"
PYTHON = b"x-stainless-read-timeout"
JAVASCRIPT = b"x-stainless-timeout"


@pytest.mark.parametrize(
    ("spelled", "seconds"),
    [
        (b"30", 30.0),
        (b"1.5", 1.5),
        (b"30s", 30.0),
        (b"500ms", 0.5),
        (b" 2 s ", 2.0),
        (b"0.25", 0.25),
    ],
)
def test_B68_our_own_header_is_for_the_whole_answer(spelled: bytes, seconds: float) -> None:
    assert client_deadline(((OURS, spelled),)) == Deadlines(seconds, seconds)


@pytest.mark.parametrize("name", [PYTHON, JAVASCRIPT])
def test_B68_what_sdks_say_is_for_its_beginning(name: bytes) -> None:
    assert client_deadline(((name, b"600"),)) == Deadlines(600.0, math.inf)


def test_the_shortest_counts() -> None:
    headers = ((OURS, b"20"), (PYTHON, b"600.0"), (JAVASCRIPT, b"10"), (OURS, b"60"))
    assert client_deadline(headers) == Deadlines(10.0, 20.0)
    assert client_deadline(((OURS, b"5"), (PYTHON, b"600"))) == Deadlines(5.0, 5.0)


@pytest.mark.parametrize(
    "spelled",
    [
        b"",
        b"0",
        b"0ms",
        b"-1",
        b"soon",
        b"1e3",
        b"inf",
        b"nan",
        b"1m",
        b"30, 40",
        b"\xff",
        b"9" * 40,
    ],
)
def test_what_can_t_be_read_asks_nothing(spelled: bytes) -> None:
    headers = ((OURS, spelled), (PYTHON, spelled), (JAVASCRIPT, spelled))
    assert client_deadline(headers) is NONE


@given(st.binary(max_size=12))
def test_no_text_breaks_it(spelled: bytes) -> None:
    asked = client_deadline(((OURS, spelled),))
    assert asked.begin_seconds > 0.0
    assert asked.end_seconds > 0.0
