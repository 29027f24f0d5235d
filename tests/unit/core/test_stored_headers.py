"""Which of an upstream's headers are kept, and which are passed on."""

import pytest

from proxy.core.stored_headers import forwarded_headers, shown_request_id, stored_headers


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (b"content-type", b"content-type"),
        (b"Content-Type", b"content-type"),
        (b"openai-model", b"openai-model"),
        (b"OpenAI-Processing-Ms", b"openai-processing-ms"),
        (b"x-request-id", b"x-upstream-request-id"),
        (b"X-Request-ID", b"x-upstream-request-id"),
    ],
)
def test_B11_what_an_entry_keeps(name: bytes, kept: bytes) -> None:
    assert stored_headers(((name, b"Value/1"),)) == ((kept, b"Value/1"),)


@pytest.mark.parametrize(
    "name",
    [
        b"set-cookie", b"Set-Cookie", b"connection", b"keep-alive", b"transfer-encoding", b"te",
        b"trailer", b"upgrade", b"content-length", b"content-encoding", b"cache-control", b"age",
        b"date", b"etag", b"server", b"via", b"vary", b"retry-after", b"x-ratelimit-limit-tokens",
        b"x-cache", b"cache-status", b"x-openai-thing", b"content-type-options", b"authorization",
        b"x-upstream-request-id", b"openai", b"",
    ],
)  # fmt: skip
def test_B11_what_an_entry_never_keeps(name: bytes) -> None:
    assert stored_headers(((name, b"v"),)) == ()


def test_B11_what_is_kept_keeps_its_order_and_repeats() -> None:
    given = ((b"openai-b", b"1"), (b"set-cookie", b"s"), (b"openai-a", b"2"), (b"openai-b", b"3"))

    assert stored_headers(given) == ((b"openai-b", b"1"), (b"openai-a", b"2"), (b"openai-b", b"3"))


@pytest.mark.parametrize("name", [b"x-cache", b"X-Cache", b"x-cache-rule", b"age", b"Age"])
def test_B12_what_tells_of_another_cache_is_replaced(name: bytes) -> None:
    kept = (b"Cache-Status", b"edge; hit")

    assert forwarded_headers(((name, b"HIT"), kept)) == [kept]


def test_B65_all_else_is_passed_on_as_it_came() -> None:
    given = (
        (b"Retry-After", b"3"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"X-RateLimit-Reset-Tokens", b"1s"),
        (b"x-cache-hits", b"4"),
    )

    assert forwarded_headers(given) == list(given)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ((), None),
        (((b"request-id", b"r"),), None),
        (((b"x-request-id", b"r"),), "r"),
        (((b"X-Request-ID", b"r"), (b"x-request-id", b"s")), "r"),
        (((b"x-request-id", b"\xe9"),), "é"),
        (((b"x-request-id", b"r" * 300),), "r" * 200),
    ],
)
def test_B17_the_request_id_that_a_client_sees(
    given: tuple[tuple[bytes, bytes], ...], shown: str | None
) -> None:
    assert shown_request_id(given) == shown
