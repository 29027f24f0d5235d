"""What is read of an upstream's headers: those to keep, to replace, and to tell (B11)."""

from proxy.core.wire import Headers, text_of

_KEPT = frozenset({b"content-type"})
_KEPT_PREFIX = b"openai-"
# Ours to set on a cached endpoint: an upstream's own would say something about another cache.
_REPLACED = frozenset({b"x-cache", b"x-cache-rule", b"x-upstream", b"age"})
# A log line must not take any length.
_SHOWN_BYTES = 200


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


def shown_request_id(headers: Headers) -> str | None:
    """The upstream's own request id, cut: the client sees it, so the log has to say the same."""
    told = text_of(headers, b"x-request-id")
    return None if told is None else told[:_SHOWN_BYTES]
