"""Every spelling of "wait" that upstreams use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.retry_after import LONGEST_SECONDS, duration, wait_seconds

WALL = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20", 20.0),
        ("0", 0.0),
        (" 1.5 ", 1.5),
        ("1s", 1.0),
        ("20ms", 0.02),
        ("6m0s", 360.0),
        ("1h2m3s", 3723.0),
        ("1d", 86_400.0),
        ("1m30.5s", 90.5),
        ("250us", 0.00025),
        ("1800000030", 30.0),
        ("1800000030500", 30.5),
        ("1799999990", 0.0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("2027-01-15T08:00:12Z", 12.0),
        ("2027-01-15T08:00:12", 12.0),
        ("999999", LONGEST_SECONDS),
        ("9" * 400, LONGEST_SECONDS),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1s tomorrow", None),
        ("s", None),
        ("nan", None),
        ("inf", None),
        ("Thu, 01 Jan 99999999999999 00:00:00 GMT", None),
        ("Thu, 01 Jan 2027 99999999999999999999:00:00 GMT", None),
    ],
)
def test_B62_a_time_in_any_spelling(text: str, seconds: float | None) -> None:
    assert duration(text, WALL) == (None if seconds is None else pytest.approx(seconds))


def said(**headers: str) -> float | None:
    pairs = tuple((n.replace("_", "-").encode(), v.encode()) for n, v in headers.items())
    return wait_seconds(pairs, WALL)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry_After": "7"}, 7.0),
        ({"retry_after": "7", "Retry_After_Ms": "6500"}, 6.5),
        ({"retry_after": "7", "retry_after_ms": "rubbish"}, 7.0),
        ({"retry_after": "7", "x_ratelimit_reset_requests": "1s"}, 7.0),
        ({"x_ratelimit_reset_requests": "20ms"}, 0.02),
        ({"x_ratelimit_reset_requests": "2s", "x_ratelimit_reset_tokens": "6m0s"}, 2.0),
        (
            {
                "x_ratelimit_reset_requests": "2s",
                "x_ratelimit_remaining_requests": "10",
                "x_ratelimit_reset_tokens": "6m0s",
                "x_ratelimit_remaining_tokens": "0",
            },
            360.0,
        ),
        (
            {
                "x_ratelimit_reset_requests": "2s",
                "x_ratelimit_remaining_requests": "0",
                "x_ratelimit_reset_tokens": "6m0s",
                "x_ratelimit_remaining_tokens": "0",
            },
            360.0,
        ),
        ({"x_ratelimit_reset": "1800000005000"}, 5.0),
        ({"ratelimit_reset": "5"}, 5.0),
        ({"anthropic_ratelimit_requests_reset": "2027-01-15T08:00:09Z"}, 9.0),
        ({"retry_after": "soon"}, None),
    ],
)
def test_B62_the_wait_that_an_answer_asks_for(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert said(**headers) == (None if seconds is None else pytest.approx(seconds))


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=40), st.floats(0, 4e9))
def test_B62_no_header_breaks_the_parser(text: str, wall: float) -> None:
    seconds = wait_seconds(((b"retry-after", text.encode("latin-1")),), wall)
    assert seconds is None or 0.0 <= seconds <= LONGEST_SECONDS


@given(st.datetimes(), st.sampled_from(["%Y-%m-%dT%H:%M:%S", "%a, %d %b %Y %H:%M:%S -2359"]))
def test_B62_no_date_breaks_the_parser(moment: object, form: str) -> None:
    seconds = duration(format(moment, form), WALL)
    assert seconds is None or 0.0 <= seconds <= LONGEST_SECONDS
