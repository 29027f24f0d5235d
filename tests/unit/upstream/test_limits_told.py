"""What answers tell of limits, in every spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.limits_told import ToldLimit, ToldLimits, told_limits
from proxy.upstream.windows import Bucket


def headers(**named: str) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((k.replace("_", "-").encode(), v.encode()) for k, v in named.items())


def test_B62_limits_are_read_in_every_spelling() -> None:
    openai = told_limits(
        headers(
            X_RateLimit_Limit_Requests="500",
            X_RateLimit_Remaining_Requests="499",
            X_RateLimit_Reset_Requests="120ms",
            X_RateLimit_Limit_Tokens="30000",
            X_RateLimit_Remaining_Tokens="29000",
            X_RateLimit_Reset_Tokens="6m0s",
        ),
        0.0,
    )
    assert openai == ToldLimits(ToldLimit(500, 499, 0.12), ToldLimit(30000, 29000, 360.0))
    anthropic = told_limits(
        headers(
            anthropic_ratelimit_requests_limit="50",
            anthropic_ratelimit_requests_remaining="10",
            anthropic_ratelimit_requests_reset="1970-01-01T00:01:00Z",
        ),
        20.0,
    )
    assert anthropic == ToldLimits(ToldLimit(50, 10, 40.0), None)
    plain = told_limits(headers(x_ratelimit_limit="5", x_ratelimit_remaining="0"), 0.0)
    assert plain == ToldLimits(ToldLimit(5, 0, None), None)


@pytest.mark.parametrize(
    ("limit", "remaining"),
    [("0", "0"), ("10", "11"), ("10", "-1"), ("ten", "1"), ("10", ""), ("", "1"), ("9" * 30, "1")],
)
def test_B62_what_contradicts_itself_is_not_told(limit: str, remaining: str) -> None:
    said = headers(x_ratelimit_limit_requests=limit, x_ratelimit_remaining_requests=remaining)
    assert told_limits(said, 0.0) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"x-ratelimit-limit-requests",
                    b"X-RateLimit-Remaining-Requests",
                    b"x-ratelimit-reset-requests",
                    b"ratelimit-limit",
                    b"content-type",
                ]
            ),
            st.binary(max_size=12) | st.from_regex(rb"[0-9]{1,3}(ms|s)?", fullmatch=True),
        ),
        max_size=6,
    )
)
def test_B62_whatever_headers_say_they_are_read_or_passed_over(
    said: list[tuple[bytes, bytes]],
) -> None:
    told = told_limits(tuple(said), 1e9)
    if told is not None and told.requests is not None:
        assert 0 <= told.requests.remaining <= told.requests.limit
        Bucket(told.requests, 0.0).wait(1, 0.0)
