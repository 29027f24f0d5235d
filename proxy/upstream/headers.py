"""Which headers pass a hop (RFC 9110 section 7.6.1), and where the key is placed. Pure."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from proxy.core.client_deadline import HEADER as DEADLINE
from proxy.core.coding import only_readable
from proxy.core.websocket import without_offered_key
from proxy.core.wire import Headers
from proxy.upstream.config import KeySecret, TransportName, UpstreamConfig

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

# As clients spell it; where it passes through, that is known.
_TE = frozenset({b"te", b"TE", b"Te"})
_ACCEPT_ENCODING = b"accept-encoding"
_TRAILERS = ((b"TE", b"trailers"), (b"Connection", b"TE"))
_WEBSOCKET = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))

# Where clients put credentials; a cookie is one as well.
_CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key", b"cookie"})


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """`headers` without the hop-by-hop ones and those that `Connection` names; order kept."""
    return tuple([(name, value) for name, value, _ in _kept(headers)])


def for_upstream(
    headers: Headers,
    config: UpstreamConfig,
    *,
    secret: KeySecret | None,
    strip_credentials: bool,
    keep_length: bool,
    upgrade: bool = False,
) -> Headers:
    """The client's headers as they go to `config`, in their order and as they are spelled.

    With a `secret`, or with `strip_credentials`, no credential of the client passes. The
    settings' own headers replace the client's of the same name. `keep_length` keeps the length
    that the client announced, for a body that is sent as it comes. `upgrade` asks for a WebSocket.
    Who takes trailers is said anew, to an upstream whose trailers pass. With a `secret`, codings
    are asked for that can be read: an error may repeat it, or tell whose fault it is.
    """
    own = [(name.lower().encode(), value.encode()) for name, value in config.headers]
    auth = config.auth_header.lower().encode()
    refused = _NEVER_SENT | {name for name, _ in own}
    if keep_length and not any(name.lower() == b"transfer-encoding" for name, _ in headers):
        refused -= {b"content-length"}
    if secret is not None or strip_credentials:
        refused |= _CREDENTIALS | {auth}
    limited = _ACCEPT_ENCODING if secret is not None else None
    passed = [
        (name, only_readable(value) if lower == limited else value)
        for name, value, lower in _kept(headers)
        if lower not in refused
    ]
    if secret is not None or strip_credentials:
        passed = without_offered_key(passed)
    if secret is not None:
        own = [pair for pair in own if pair[0] != auth]
        own.append((auth, f"{config.auth_scheme} {secret.value}".strip().encode()))
    if upgrade:
        own += _WEBSOCKET
    elif config.transport is TransportName.AIOHTTP and _takes_trailers(headers):
        own += _TRAILERS
    return (*passed, *own)


def _takes_trailers(headers: Headers) -> bool:
    if _TE.isdisjoint(dict(headers)):  # as nearly always, and found out without a loop
        return False
    said = b",".join([value for name, value in headers if name in _TE])
    return b"trailers" in [each.strip() for each in said.lower().split(b",")]


def _kept(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes, bytes]]:
    """The end-to-end ones, each with its name in lower case as well."""
    dropped: AbstractSet[bytes] = HOP_BY_HOP
    kept = []
    for name, value in headers:
        lower = name.lower()
        if lower == b"connection":
            dropped = dropped | {token.strip().lower() for token in value.split(b",")}
        kept.append((name, value, lower))
    return [each for each in kept if each[2] not in dropped]
