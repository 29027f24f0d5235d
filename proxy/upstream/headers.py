"""Which headers pass a hop (RFC 9110 section 7.6.1), and where the key is placed. Pure."""

from collections.abc import Iterable

from proxy.core.client_deadline import HEADER as DEADLINE
from proxy.core.wire import Headers, header
from proxy.upstream.config import KeySecret, UpstreamConfig

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

# Never sent: the transport writes its own host and framing, `Expect` would stall the upload, the
# admin key is a secret of this proxy, and the deadline was said to it.
_NEVER_SENT = frozenset({b"host", b"content-length", b"expect", b"x-admin-key", DEADLINE})

# Where clients put credentials; a cookie is one as well.
_CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key", b"cookie"})


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """`headers` without the hop-by-hop ones and those that `Connection` names; order kept."""
    kept = [(name, value, name.lower()) for name, value in headers]
    named = _named_by_connection(kept)
    return tuple(
        (name, value)
        for name, value, lower in kept
        if lower not in HOP_BY_HOP and lower not in named
    )


def for_upstream(
    headers: Headers,
    config: UpstreamConfig,
    *,
    secret: KeySecret | None,
    strip_credentials: bool,
    keep_length: bool,
) -> Headers:
    """The client's headers as they go to `config`, names in lower case.

    With a `secret`, or with `strip_credentials`, no credential of the client passes. The
    settings' own headers replace the client's of the same name. `keep_length` keeps the length
    that the client announced, for a body that is sent as it comes.
    """
    own = [(name.lower().encode(), value.encode()) for name, value in config.headers]
    auth = config.auth_header.lower().encode()
    refused = _NEVER_SENT | {name for name, _ in own}
    if keep_length and header(headers, b"transfer-encoding") is None:
        refused -= {b"content-length"}
    if secret is not None or strip_credentials:
        refused |= _CREDENTIALS | {auth}
    passed = [(n.lower(), v) for n, v in end_to_end(headers) if n.lower() not in refused]
    if secret is not None:
        own = [pair for pair in own if pair[0] != auth]
        own.append((auth, f"{config.auth_scheme} {secret.value}".strip().encode()))
    return (*passed, *own)


def _named_by_connection(headers: list[tuple[bytes, bytes, bytes]]) -> set[bytes]:
    return {
        token.strip().lower()
        for _, value, lower in headers
        if lower == b"connection"
        for token in value.split(b",")
    }
