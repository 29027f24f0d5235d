"""Which response headers an entry keeps, and which a forwarded answer may not carry (B11)."""

from proxy.core.wire import Headers

_KEPT = frozenset({b"content-type"})
_KEPT_PREFIX = b"openai-"
# Ours to set on a cached endpoint: an upstream's own would say something about another cache.
_REPLACED = frozenset({b"x-cache", b"x-cache-rule", b"age"})


def stored_headers(headers: Headers) -> Headers:
    """The allow-list of an entry; the upstream's request id is kept under a name of its own."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        lower = name.lower()
        if lower in _KEPT or lower.startswith(_KEPT_PREFIX):
            kept.append((lower, value))
        elif lower == b"x-request-id":
            kept.append((b"x-upstream-request-id", value))
    return tuple(kept)


def forwarded_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """An upstream's headers without those that tell of a cache, which are set anew."""
    return [pair for pair in headers if pair[0].lower() not in _REPLACED]
