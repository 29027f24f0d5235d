"""Which headers go upstream."""

from dataclasses import replace

import pytest

from proxy.core.wire import Headers
from proxy.upstream.config import KeySecret, TransportName, UpstreamConfig
from proxy.upstream.headers import end_to_end, for_upstream

KEY = KeySecret("sk-pool")
CLIENT: Headers = (
    (b"host", b"proxy.example"),
    (b"x-first", b"1"),
    (b"authorization", b"Bearer sk-client"),
    (b"content-length", b"7"),
    (b"connection", b"keep-alive, X-Private"),
    (b"x-private", b"hop"),
    (b"x-admin-key", b"admin-secret"),
    (b"proxy-authorization", b"Basic abc"),
    (b"expect", b"100-continue"),
    (b"te", b"trailers"),
    (b"openai-organization", b"org"),
    (b"x-first", b"2"),
)


def sent(
    config: UpstreamConfig,
    headers: Headers = CLIENT,
    secret: KeySecret | None = None,
    strip: bool = False,
    keep_length: bool = False,
) -> Headers:
    return for_upstream(
        headers, config, secret=secret, strip_credentials=strip, keep_length=keep_length
    )


PLAIN = UpstreamConfig("up", "https://upstream.example/v1")
TAKES_TRAILERS = ((b"TE", b"trailers"), (b"Connection", b"TE"))


def test_B60_end_to_end_headers_pass_in_order() -> None:
    passed = (
        (b"x-first", b"1"),
        (b"authorization", b"Bearer sk-client"),
        (b"openai-organization", b"org"),
        (b"x-first", b"2"),
    )
    assert sent(PLAIN) == (*passed, *TAKES_TRAILERS)
    assert sent(replace(PLAIN, transport=TransportName.HTTPX)) == passed


def test_B60_hop_by_hop_is_told_in_any_case() -> None:
    headers = ((b"Connection", b"close,  X-Hop ,"), (b"X-HOP", b"1"), (b"Keep-Alive", b"1"))
    assert end_to_end((*headers, (b"X-Kept", b"1"))) == ((b"X-Kept", b"1"),)


def test_B60_an_announced_length_is_kept_for_an_upload() -> None:
    assert (b"content-length", b"7") in sent(PLAIN, keep_length=True)
    both = ((b"content-length", b"7"), (b"transfer-encoding", b"chunked"))
    assert sent(PLAIN, both, keep_length=True) == (), "two lengths are how requests are smuggled"


@pytest.mark.parametrize(
    "name", [b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key", b"cookie"]
)
def test_B69_no_credential_of_the_client_passes_beside_a_pool_key(name: bytes) -> None:
    headers = ((name, b"sk-client"), (b"x-kept", b"1"))
    pooled = sent(PLAIN, headers, secret=KEY)
    assert pooled == ((b"x-kept", b"1"), (b"authorization", b"Bearer sk-pool"))
    assert sent(PLAIN, headers, strip=True) == ((b"x-kept", b"1"),)
    assert (name, b"sk-client") in sent(PLAIN, headers)


def test_B62_the_key_is_placed_as_the_upstream_wants_it() -> None:
    azure = UpstreamConfig("az", "https://az.example", auth_header="API-Key", auth_scheme="")
    assert sent(azure, (), secret=KEY) == ((b"api-key", b"sk-pool"),)
    odd = UpstreamConfig("odd", "https://odd.example", auth_header="X-Token", auth_scheme="Token")
    assert sent(odd, ((b"x-token", b"mine"),), secret=KEY) == ((b"x-token", b"Token sk-pool"),)


def test_B60_headers_of_the_settings_win() -> None:
    config = UpstreamConfig("up", "https://up.example", headers=(("X-First", "mine"),))
    assert (b"x-first", b"mine") in sent(config)
    assert (b"x-first", b"1") not in sent(config)


def test_B69_what_can_be_secret_is_not_in_the_repr() -> None:
    config = UpstreamConfig(
        "up",
        "https://up.example",
        keys=(KeySecret("sk-secret"),),
        headers=(("x-token", "sk-secret"),),
        query=(("key", "sk-secret"),),
        http_proxy="http://me:sk-secret@proxy.example",
    )
    assert "sk-secret" not in repr(config)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        (b"gzip, deflate", b"gzip, deflate"),
        (b"GZIP;q=0.5, identity", b"GZIP;q=0.5, identity"),
        (b"gzip, br;q=0", b"gzip, br;q=0"),
        (b"gzip, deflate, br, zstd", b"gzip, deflate, zstd"),
        (b"br", b"identity"),
        (b"*", b"identity"),
        (b"", b""),
    ],
)
def test_B69_with_a_key_of_the_pool_no_coding_is_asked_for_that_could_hide_it(
    said: bytes, asked: bytes
) -> None:
    headers = ((b"x-first", b"1"), (b"Accept-Encoding", said), (b"x-last", b"1"))
    (*passed, _) = sent(PLAIN, headers, secret=KEY)
    assert passed == [(b"x-first", b"1"), (b"Accept-Encoding", asked), (b"x-last", b"1")]
    assert sent(PLAIN, headers) == headers, "a client's own key it may have back"
