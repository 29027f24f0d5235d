"""From an upstream's answer to a `Verdict`. Pure."""

import io
import zlib
from typing import Any

import orjson
import zstandard

from proxy.core.wire import Headers, header
from proxy.upstream.retry_after import retry_after_seconds, wait_seconds
from proxy.upstream.verdict import (
    KeyLimited,
    KeyRejected,
    KeyUnfit,
    KeyWorks,
    Neutral,
    UpstreamFault,
    Verdict,
)

# What an error's `code` or `type` can be when the account's credit is used up.
QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "insufficient_balance",
        "insufficient_credits",
        "credit_balance_too_low",
        "quota_exceeded",
    }
)

# Refusals with status 403 that will not change for this key.
CLOSED_CODES = frozenset(
    {
        "account_deactivated",
        "account_suspended",
        "access_terminated",
        "api_key_disabled",
        "api_key_expired",
        "api_key_revoked",
        "deactivated_organization",
        "invalid_api_key",
        "key_revoked",
        "organization_deactivated",
        "organization_suspended",
        "user_suspended",
    }
)

# Refusals with status 401 that are the fault of a header the client sent, not of the key: were
# they to retire it, one client could empty the pool.
CLIENT_CODES = frozenset(
    {
        "invalid_organization",
        "invalid_project",
        "mismatched_organization",
        "mismatched_project",
    }
)

# Refusals with status 401 or 403 of a good key that lacks a permission, which depends on what is
# asked: any client can ask for what no key may do. OpenAI says it in a code or in words alone.
UNFIT_CODES = frozenset({"missing_scope", "insufficient_permissions"})
UNFIT_WORDS = ("missing scopes", "insufficient permissions for this operation")

# 408: the upstream gave up reading. 501 and 505 answer what was asked: they say that it can't be.
FAULT_STATUSES = frozenset({408, *range(500, 600)} - {501, 505})

# Statuses whose meaning depends on the code in the body.
BODY_STATUSES = frozenset({401, 402, 403, 429})

LONGEST_BODY = 65_536

# The content codings that `plain` reads.
_READ = frozenset({b"identity", b"gzip", b"x-gzip", b"deflate", b"zstd"})

_FIRST_ERROR = 400
_UNAUTHORIZED = 401
_PAYMENT_REQUIRED = 402
_TOO_MANY = 429


def classify(status: int, headers: Headers, body: bytes, wall: float) -> Verdict:
    """The verdict on an answer.

    `headers` in any case; `body` as it came, content-coded, at most `LONGEST_BODY` of it, and
    only looked at for `BODY_STATUSES`; `wall` is the time of the answer.
    """
    if status in FAULT_STATUSES:
        return UpstreamFault(f"status {status}", again=_invites(headers, wall))
    if status not in BODY_STATUSES:
        return KeyWorks() if status < _FIRST_ERROR else Neutral()
    lower = tuple((name.lower(), value) for name, value in headers)
    if status == _UNAUTHORIZED and coding_of(lower) not in _READ:
        return KeyUnfit()  # who asked chose the coding; it may say any of `CLIENT_CODES`
    places = error_places(plain(lower, body))
    codes = _codes(places)
    if status == _PAYMENT_REQUIRED or (status != _UNAUTHORIZED and codes & QUOTA_CODES):
        return KeyLimited(wait_seconds(lower, wall), quota=True)
    if status == _TOO_MANY:
        return KeyLimited(wait_seconds(lower, wall))
    return _refusal(status, places, codes)


def _refusal(status: int, places: list[dict[str, Any]], codes: set[str]) -> Verdict:
    """What a 401 or 403 says of the key."""
    if codes & UNFIT_CODES or _says(places, UNFIT_WORDS):
        return KeyUnfit()
    if status == _UNAUTHORIZED:
        return Neutral() if codes & CLIENT_CODES else KeyRejected("status 401")
    closed = sorted(codes & CLOSED_CODES)
    return KeyRejected(f"status 403, {closed[0]}") if closed else Neutral()


def coding_of(headers: Headers) -> bytes:
    """The content coding that `headers` (names in lower case) tell, in lower case."""
    return (header(headers, b"content-encoding") or b"").strip().lower() or b"identity"


def plain(headers: Headers, body: bytes) -> bytes:
    """`body` decoded as far as it can be, bounded; empty for a coding that is not known."""
    try:
        match coding_of(headers):
            case b"identity":
                return body[:LONGEST_BODY]
            case b"gzip" | b"x-gzip" | b"deflate":
                # 32: the decoder tells the gzip and zlib forms apart by itself.
                return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, LONGEST_BODY)
            case b"zstd":
                with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body)) as reader:
                    return reader.read(LONGEST_BODY)
            case _:
                return b""
    except (zlib.error, zstandard.ZstdError):
        return b""


def error_places(body: bytes) -> list[dict[str, Any]]:
    """The objects in which an error's `code`, `type` and `message` can stand; none for no JSON."""
    try:
        envelope = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    if isinstance(envelope, list) and envelope:
        envelope = envelope[0]
    places = [envelope]
    for name in ("error", "innererror"):
        places.append(places[-1].get(name) if isinstance(places[-1], dict) else None)
    return [place for place in places if isinstance(place, dict)]


def _invites(headers: Headers, wall: float) -> bool:
    """Whether a failing upstream leaves open to be asked again at once."""
    if any(n.lower() == b"x-should-retry" and v.strip().lower() == b"false" for n, v in headers):
        return False
    return not retry_after_seconds(headers, wall)


def _codes(places: list[dict[str, Any]]) -> set[str]:
    """The `code` and `type` of an error envelope, lower case; of `error` or of the top level."""
    return {
        value.strip().lower()
        for place in places
        for member in ("code", "type", "status")
        if isinstance(value := place.get(member), str)
    }


def _says(places: list[dict[str, Any]], words: tuple[str, ...]) -> bool:
    said = [place["message"].lower() for place in places if isinstance(place.get("message"), str)]
    return any(each in message for message in said for each in words)
