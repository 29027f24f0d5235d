"""The faults, one row each: what is on the wire, and what it says in the words of the docs.

A row says nothing of the proxy. What follows for keys, circuit, cache and client is in `table.py`.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import formatdate
from functools import partial
from typing import Final

from tests.faults.fault import (
    LONGEST_REST,
    QUOTA_COOLDOWN,
    SOON,
    WALL,
    At,
    Blames,
    Breaks,
    Fails,
    Fault,
    Fine,
    Limits,
    NoAnswer,
    Odd,
    Rejects,
    Says,
)
from tests.faults.kinds import JSON, SSE, Good, Kind
from tests.faults.tcp_proxy import Line, Loss
from tests.faults.wires import (
    Then,
    Wire,
    answer,
    events,
    head,
    in_chunks,
    joined,
    refusal,
    sized,
    until_close,
)


def _always(wire: Wire) -> Callable[[Good], Wire]:
    return lambda _: wire


FIRST_BYTE: Final = {"first_byte_seconds": SOON}
BETWEEN: Final = {"between_bytes_seconds": SOON}
TOTAL: Final = {"total_seconds": 2 * SOON}
TIMED_OUT: Final = NoAnswer("upstream_timeout", may_work=True)
NOT_HTTP: Final = NoAnswer("upstream_protocol_error")
_HALF_A_HEAD: Final = Wire((b"HTTP/1.1 200 OK\r\nContent-Ty",))
_ENDLESS_HEAD: Final = Wire((b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"), Then.AGAIN, pace=0.02)


def _size_lost(good: Good) -> Wire:
    told, first, *_, last = in_chunks(good).pieces
    return Wire(joined((told, first, b"not a size\r\n", last)), Then.SILENCE, good.body)


def _too_short(good: Good) -> Wire:
    wire = sized(good, length=len(good.body) - 7)
    return Wire(joined(wire.pieces), body=good.body[:-7])


NO_ANSWER: Final = (
    Fault("refused", NoAnswer(reached=False, always=True), at=At.NOBODY),
    Fault(
        "connecting-stalls",
        NoAnswer("upstream_timeout", may_work=True, reached=False, always=True),
        timeouts={"connect_seconds": SOON},
        at=At.FULL,
    ),
    Fault("reset-before", NoAnswer(), _always(Wire(then=Then.RESET))),
    Fault("closed-before", NoAnswer(), _always(Wire(then=Then.CLOSE))),
    Fault("stalls-before", TIMED_OUT, _always(Wire(then=Then.SILENCE)), timeouts=FIRST_BYTE),
    Fault("reset-in-head", NoAnswer(), _always(_HALF_A_HEAD.ends(Then.RESET))),
    Fault("closed-in-head", NoAnswer(), _always(_HALF_A_HEAD.ends(Then.CLOSE))),
    Fault(
        "stalls-in-head", TIMED_OUT, _always(_HALF_A_HEAD.ends(Then.SILENCE)), timeouts=FIRST_BYTE
    ),
    Fault("head-trickles", TIMED_OUT, _always(_ENDLESS_HEAD), timeouts={**TOTAL, **FIRST_BYTE}),
    Fault("not-http", NOT_HTTP, _always(Wire((b"SSH-2.0-OpenSSH_9.2\r\n\r\n",), Then.CLOSE))),
    Fault("status-is-none", NOT_HTTP, _always(answer(999, b"{}"))),
    Fault("head-too-long", NOT_HTTP, _always(answer(200, b"{}", b"X-Long: " + b"x" * 200_000))),
    # More than it says, or a chunk that is none, at once with the head.
    Fault("length-too-short", NOT_HTTP, _too_short),
    Fault("status-204-and-more", NOT_HTTP, _always(Wire((head(204, b"") + b"No content.",)))),
    Fault("chunk-size-is-none", NOT_HTTP, _size_lost),
)


# ---- answers that begin well ----


def _chunk_cut(good: Good) -> Wire:
    told, first, second, *_ = in_chunks(good).pieces
    return Wire((told, first, second[:-3]), Then.CLOSE, good.body)


def _endless(good: Good) -> Wire:
    told, *_ = in_chunks(good).pieces
    more = b": waits\n\n" if good.content_type == SSE else b" " * 16
    return Wire((told, b"%x\r\n%s\r\n" % (len(more), more)), Then.AGAIN, more * 1000, pace=0.01)


def _long_and_endless(good: Good) -> Wire:
    told, *_ = in_chunks(good).pieces
    long, more = b"x" * 80_000, b"y" * 16
    pieces = (told, b"%x\r\n%s\r\n" % (len(long), long), b"10\r\n%s\r\n" % more)
    return Wire(pieces, Then.AGAIN, long + more * 1000, pace=0.01)


BREAKS: Final = (
    Fault("reset-after-head", Breaks(), lambda good: sized(good)[:1].ends(Then.RESET)),
    Fault("closed-after-head", Breaks(), lambda good: sized(good)[:1].ends(Then.CLOSE)),
    Fault(
        "stalls-after-head",
        Breaks("upstream_timeout"),
        lambda good: sized(good)[:1].ends(Then.SILENCE),
        timeouts=BETWEEN,
    ),
    Fault("reset-in-body", Breaks(), lambda good: in_chunks(good)[:2].ends(Then.RESET)),
    Fault("closed-in-body", Breaks(), lambda good: in_chunks(good)[:2].ends(Then.CLOSE)),
    Fault(
        "stalls-in-body",
        Breaks("upstream_timeout"),
        lambda good: in_chunks(good)[:2].ends(Then.SILENCE),
        timeouts=BETWEEN,
    ),
    Fault("last-chunk-missing", Breaks(), lambda good: in_chunks(good)[:-1].ends(Then.CLOSE)),
    Fault("chunk-cut", Breaks(), _chunk_cut),
    Fault(
        "length-too-long",
        Breaks(),
        lambda good: sized(good, length=len(good.body) + 100).ends(Then.CLOSE),
    ),
    Fault(
        "length-too-long-and-silence",
        Breaks("upstream_timeout"),
        lambda good: sized(good, length=len(good.body) + 100).ends(Then.SILENCE),
        timeouts=BETWEEN,
    ),
    Fault("endless", Breaks("upstream_timeout"), _endless, timeouts=TOTAL),
    Fault("long-and-endless", Breaks("upstream_timeout"), _long_and_endless, timeouts=TOTAL),
)


# ---- whole answers that are none ----


def _typed(content_type: bytes) -> Callable[[Good], Wire]:
    return lambda good: answer(200, good.body, content_type=content_type)


def _cut_json(good: Good) -> Wire:
    return answer(200, good.body[:-7], content_type=good.content_type)


def _empty(good: Good) -> Wire:
    return answer(200, b"", content_type=good.content_type)


_OVERLOADED: Final = b'{"error": {"message": "busy", "type": "server_error", "code": "overloaded"}}'
_PORTAL: Final = b"<html><body>Please sign in.</body></html>"
_ELSEWHERE: Final = b"Location: http://127.0.0.1:1/v1/elsewhere"

ODD: Final = (
    Fault("json-cut", Odd(), _cut_json),
    Fault("cut-until-close", Odd(), lambda _: until_close(Good(JSON, (b'{"id": "a', b'b"')))),
    Fault("not-utf-8", Odd(), lambda _: answer(200, b'{"id": "\xff"}')),
    Fault("no-gzip", Odd(), lambda good: sized(good, b"Content-Encoding: gzip")),
    Fault("error-with-200", Odd(), _always(answer(200, _OVERLOADED))),
    Fault("portal", Odd(), _always(answer(200, _PORTAL, content_type=b"text/html"))),
    Fault("empty", Odd(), _empty),
    Fault("other-type", Odd(), _typed(b"text/plain")),
    Fault("no-type", Odd(), _typed(b"")),
    Fault("status-201", Odd(), lambda good: answer(201, good.body)),
    Fault("status-204", Odd(), _always(Wire((head(204, b""),)))),
    Fault("status-304", Odd(), _always(Wire((head(304, b""),)))),
    *(
        Fault(f"status-{status}", Odd(), _always(answer(status, b"", _ELSEWHERE)))
        for status in (301, 302, 303, 307, 308)
    ),
    Fault(
        "one-vector-for-two",
        Odd(),
        lambda good: answer(200, good.body.replace(b'"index":1', b'"index":0')),
        kinds=frozenset({Kind.EMBEDDINGS}),
    ),
)


# ---- streams ----

STREAMS: Final = frozenset({Kind.STREAM})
_ERROR_DATA: Final = b"data: " + _OVERLOADED + b"\n\n"
_ERROR_EVENT: Final = b"event: error\n" + _ERROR_DATA


def _stream(*replaced: bytes, kept: int = 2) -> Callable[[Good], Wire]:
    return lambda good: events(*good.pieces[:kept], *replaced)


IN_STREAMS: Final = (
    Fault("error-in-stream", Odd(), _stream(_ERROR_DATA), STREAMS),
    Fault("error-event", Odd(), _stream(_ERROR_EVENT), STREAMS),
    Fault("error-then-done", Odd(), _stream(_ERROR_DATA, b"data: [DONE]\n\n"), STREAMS),
    Fault("error-at-once", Odd(), _stream(_ERROR_DATA, kept=0), STREAMS),
    Fault("no-done", Odd(), _stream(kept=3), STREAMS),
    Fault("no-finish", Odd(), _stream(b"data: [DONE]\n\n"), STREAMS),
    Fault("cut-in-event", Odd(), _stream(b'data: {"id": "a'), STREAMS),
    Fault("done-without-its-line", Odd(), _stream(b"data: [DONE]", kept=3), STREAMS),
    Fault("no-json-in-event", Odd(), _stream(b"data: {rubbish\n\n"), STREAMS),
    Fault("empty-stream", Odd(), _stream(kept=0), STREAMS),
    Fault(
        "broken-in-event",
        Breaks(),
        lambda good: events(*good.pieces[:2], b'data: {"id": "a')[:-1].ends(Then.CLOSE),
        STREAMS,
    ),
    Fault("comments-alone", Breaks("upstream_timeout"), _endless, STREAMS, TOTAL),
)


# ---- good answers in odd ways ----

_HINTS: Final = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"


def _trickling(good: Good) -> Wire:
    raw = b"".join(sized(good).pieces)
    pieces = tuple(raw[at : at + 40] for at in range(0, len(raw), 40))
    return Wire(pieces, body=good.body, pace=0.002)


def _after_hints(good: Good) -> Wire:
    return Wire((_HINTS, *sized(good).pieces), body=good.body)


def _with_trailers(good: Good) -> Wire:
    *pieces, _ = in_chunks(good).pieces
    return Wire((*pieces, b"0\r\nX-Sum: 1\r\n\r\n"), body=good.body)


FINE: Final = (
    Fault("trickles", Fine(), _trickling),
    Fault("until-close", Fine(), until_close),
    Fault("early-hints", Fine(), _after_hints),
    Fault("trailers", Fine(), _with_trailers),
)


# ---- statuses ----


def _told(status: int, says: Says, code: str | None = None, *lines: bytes, name: str = "") -> Fault:
    told = _always(refusal(status, code, *lines))
    return Fault(f"{status}-{name}" if name else str(status), says, told)


def _date(seconds: float) -> bytes:
    return formatdate(WALL + seconds, usegmt=True).encode()


def _rfc3339(seconds: float) -> bytes:
    return datetime.fromtimestamp(WALL + seconds, UTC).isoformat().encode()


BLAMED: Final = (
    _told(400, Blames(), "invalid_value"),
    _told(400, Blames(), "invalid_api_key", name="words-of-a-key"),
    _told(400, Blames(), "context_length_exceeded", name="too-long"),
    _told(400, Blames(), "content_filter", name="filtered"),
    _told(401, Blames(), "mismatched_organization", name="organization"),
    _told(403, Blames(), "unsupported_country_region_territory"),
    _told(404, Blames(), "model_not_found"),
    _told(405, Blames()),
    _told(409, Blames()),
    _told(413, Blames()),
    _told(415, Blames()),
    _told(422, Blames()),
    _told(451, Blames()),
    _told(499, Blames()),
    _told(501, Blames()),
    _told(505, Blames()),
)

REJECTED: Final = (
    _told(401, Rejects(), "invalid_api_key"),
    _told(401, Rejects(), "account_deactivated", name="deactivated"),
    _told(403, Rejects(), "account_deactivated", name="deactivated"),
)

_limited: Final = partial(_told, 429)
_OUT: Final = "insufficient_quota"
LIMITED: Final = (
    _limited(Limits(), "rate_limit_exceeded"),
    _limited(Limits(90), None, b"Retry-After: 90", name="seconds"),
    _limited(Limits(90.5), None, b"Retry-After: 90.5", name="fraction"),
    _limited(Limits(90), None, b"Retry-After: " + _date(90), name="date"),
    _limited(Limits(0), None, b"Retry-After: " + _date(-90), name="date-past"),
    _limited(Limits(0), None, b"Retry-After: 0", name="zero"),
    _limited(Limits(), None, b"Retry-After: soon", name="rubbish"),
    _limited(Limits(LONGEST_REST), None, b"Retry-After: 999999", name="weeks"),
    _limited(Limits(90.5), None, b"retry-after-ms: 90500", name="ms"),
    _limited(Limits(90.5), None, b"retry-after-ms: 90500", b"Retry-After: 91", name="ms-first"),
    _limited(
        Limits(360),
        None,
        b"x-ratelimit-reset-requests: 6m0s",
        b"x-ratelimit-remaining-requests: 0",
        name="reset-requests",
    ),
    _limited(
        Limits(3723),
        None,
        b"x-ratelimit-reset-tokens: 1h2m3s",
        b"x-ratelimit-remaining-tokens: 0",
        name="reset-tokens",
    ),
    _limited(
        Limits(90),
        None,
        b"x-ratelimit-reset-requests: 8.64s",
        b"x-ratelimit-remaining-requests: 9",
        b"x-ratelimit-reset-tokens: 1m30s",
        b"x-ratelimit-remaining-tokens: 0",
        name="reset-of-the-one-used-up",
    ),
    _limited(Limits(90), None, b"x-ratelimit-reset-requests: 90000ms", name="reset-milliseconds"),
    _limited(
        Limits(90), None, b"x-ratelimit-reset: %d" % int((WALL + 90) * 1000), name="reset-epoch"
    ),
    _limited(
        Limits(90),
        None,
        b"anthropic-ratelimit-requests-reset: " + _rfc3339(90),
        b"anthropic-ratelimit-requests-remaining: 0",
        name="anthropic-requests",
    ),
    _limited(
        Limits(120),
        None,
        b"anthropic-ratelimit-tokens-reset: " + _rfc3339(120),
        b"anthropic-ratelimit-tokens-remaining: 0",
        name="anthropic-tokens",
    ),
    _limited(Limits(90), None, b"x-should-retry: false", b"Retry-After: 90", name="not-again"),
    _limited(Limits(QUOTA_COOLDOWN), _OUT, name="quota"),
    _limited(Limits(QUOTA_COOLDOWN), _OUT, b"Retry-After: 90", name="quota-seconds"),
    Fault("429-cut", Limits(cut="upstream_protocol_error"), lambda _: _cut(429)),
    _told(402, Limits(QUOTA_COOLDOWN)),
    _told(403, Limits(QUOTA_COOLDOWN), "billing_not_active", name="billing"),
)


def _cut(status: int) -> Wire:
    whole = refusal(status)
    return Wire((whole.pieces[0][:-10],), Then.CLOSE, whole.body)


FAILED: Final = (
    _told(408, Fails()),
    _told(500, Fails()),
    _told(500, Fails(), None, b"x-should-retry: true", name="again"),
    _told(500, Fails(), None, b"x-should-retry: false", name="not-again"),
    Fault("500-html", Fails(), _always(answer(500, b"<h1>Oops</h1>", content_type=b"text/html"))),
    _told(502, Fails()),
    Fault("502-empty", Fails(), _always(answer(502, b"", content_type=b""))),
    _told(503, Fails()),
    _told(503, Fails(), None, b"Retry-After: 90", name="seconds"),
    _told(504, Fails()),
    _told(520, Fails()),
    _told(524, Fails()),
    _told(529, Fails(), "overloaded_error"),
    _told(529, Fails(), "overloaded_error", b"Retry-After: 90", name="seconds"),
    Fault("503-cut", Fails("upstream_protocol_error"), _always(_cut(503))),
    Fault(
        "503-stalls",
        Fails("upstream_timeout"),
        _always(_cut(503).ends(Then.SILENCE)),
        timeouts=BETWEEN,
    ),
)

# ---- lines ----

_LOST: Final = NoAnswer(always=True)
_LATE: Final = NoAnswer("upstream_timeout", may_work=True, always=True)
LINES: Final = (
    Fault("line-slow", Fine(), at=At.LINE, up=Line(0.05), down=Line(0.05)),
    Fault("line-narrow", Fine(), at=At.LINE, down=Line(bytes_per_second=5000)),
    Fault("line-too-slow", _LATE, at=At.LINE, down=Line(delay_seconds=10.0), timeouts=FIRST_BYTE),
    Fault("line-lost-in-request", _LOST, at=At.LINE, up=Line(most_bytes=40)),
    Fault("line-lost-in-head", _LOST, at=At.LINE, down=Line(most_bytes=20)),
    Fault(
        "line-dead",
        _LATE,
        at=At.LINE,
        up=Line(most_bytes=40, loss=Loss.SILENCE),
        timeouts=FIRST_BYTE,
    ),
)

FAULTS: Final = (
    *LINES,
    *NO_ANSWER,
    *BREAKS,
    *ODD,
    *IN_STREAMS,
    *BLAMED,
    *REJECTED,
    *LIMITED,
    *FAILED,
    *FINE,
)
