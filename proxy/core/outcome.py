"""The outcome: one value that tells what happened to a request.

Header, metric, log line and explanation are renderings of it, so they can't disagree.
"""

from enum import StrEnum

from proxy.core.entry import Usage
from proxy.core.values import value

# The status told, never sent, of a client that did not wait for its answer; nginx logs the same.
CLIENT_GONE = 499


class XCache(StrEnum):
    """The one-word summary, as in the `X-Cache` header."""

    HIT = "HIT"  # answered from a fresh entry
    MISS = "MISS"  # forwarded; could have been a hit
    BYPASS = "BYPASS"  # forwarded; the cache was not asked
    STALE = "STALE"  # answered from an entry past its freshness
    ERROR = "ERROR"  # answered by the proxy itself, with an error


class Forwarded(StrEnum):
    """Why a request went upstream: the `fwd` values of RFC 9211 section 2.2 that apply here."""

    MISS = "miss"  # no entry that could serve it
    BYPASS = "bypass"  # the cache was not consulted
    REQUEST = "request"  # there may be a fresh entry, but the client did not want it
    STALE = "stale"  # the entry found was no longer fresh


class MissReason(StrEnum):
    """What a look-up came back with, where it was not a hit."""

    ABSENT = "absent"  # nothing is stored under the key
    EXPIRED = "expired"  # an entry was there, past its freshness
    PURGED = "purged"  # an entry was there, and a purge has named it since
    UNREADABLE = "unreadable"  # stored bytes did not decode to this entry; they were deleted
    STORE_DOWN = "store-down"  # the store did not answer in time, or its circuit is open
    FORM = "form"  # the entry can't be served in the form asked for (a usage chunk it lacks)
    NO_CACHE = "no-cache"  # the client asked for a new answer
    MAX_AGE = "max-age"  # the entry is older than the client allows
    PARTIAL = "partial"  # some inputs of a batch had entries: how many of them follows the colon


class BypassReason(StrEnum):
    """Why the cache was not asked at all."""

    DISABLED = "disabled"  # `cache_settings.enabled` is false
    NO_RULE = "no-rule"  # no rule matches the request
    NO_KEY_FIELD = "no-key-field"  # the request carries none of the rule's fields
    UNLISTED_FIELD = "unlisted-field"  # a field outside the key changes the answer
    UNREPRESENTABLE = "unrepresentable"  # the body can't be represented exactly
    RESERVED_FIELD = "reserved-field"  # the body has a member that the key derivation reserves
    CLIENT_PASS = "client-pass"  # noqa: S105  # no-cache and no-store together
    NOT_CACHEABLE = "not-cacheable"  # not an endpoint, method, part or form that is cached


@value(frozen=True, slots=True)
class Outcome:
    """What happened to one request.

    `stored` is None while it is not known (a stream under way). `detail` is a reason's value, with
    the field it is about after a colon. Times in seconds; `digest` is the key's digest in hex.
    `usage` is what the answer says, `billed` what the upstream counted for this request; None goes
    by the kind of outcome. Of a batch's `items`, `item_hits` came from entries, and
    `items_collapsed` from what others asked for, or the same batch at another place. `profile` of
    `upstream` gave the answer, `fallback` says that it was not the first of its chain; `shown_as`
    is what the client is told of them. `socket_end` is a `SocketEnd`, with the code of the close
    frame after a colon.
    """

    x_cache: XCache
    endpoint: str
    status: int = 0
    model: str = ""
    rule: str | None = None
    digest: str | None = None
    forwarded: Forwarded | None = None
    forward_status: int | None = None
    stored: bool | None = None
    collapsed: bool = False
    ttl_seconds: float | None = None
    age_seconds: float | None = None
    detail: str | None = None
    not_stored: str | None = None
    usage: Usage | None = None
    billed: Usage | None = None
    items: int | None = None
    item_hits: int | None = None
    items_collapsed: int | None = None
    stream: bool = False
    upstream: str | None = None
    client: str | None = None
    request_id: str = ""
    complete: bool = True
    duration_seconds: float = 0.0
    profile: str | None = None
    fallback: bool = False
    shown_as: str | None = None
    socket_end: str | None = None

    def repeated(self, *, request_id: str, age_seconds: float, ttl_seconds: float) -> "Outcome":
        """The outcome of the same hit at another time, which took next to none.

        Spelled out: `dataclasses.replace` costs five times as much, on the fastest path there is.
        """
        return Outcome(
            self.x_cache,
            self.endpoint,
            self.status,
            self.model,
            self.rule,
            self.digest,
            ttl_seconds=ttl_seconds,
            age_seconds=age_seconds,
            usage=self.usage,
            stream=self.stream,
            client=self.client,
            request_id=request_id,
        )
