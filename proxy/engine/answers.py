"""Answers that need no upstream: hits, and the proxy's own errors."""

import math

import orjson

from proxy.core.cache_status import outcome_headers
from proxy.core.coding import gzipped, refuses_identity
from proxy.core.entry import Entry
from proxy.core.outcome import Outcome
from proxy.core.replay import Rendered
from proxy.core.wire import Headers, header
from proxy.engine.base import Answer, HeaderList
from proxy.errors import ProxyError


def hit_answer(
    entry: Entry, rendered: Rendered, outcome: Outcome, request_headers: Headers, *, with_key: bool
) -> Answer:
    """The stored answer in the form asked for, with its own request id and the outcome."""
    headers: HeaderList = [(b"content-type", rendered.content_type)]
    headers += [pair for pair in entry.headers if pair[0] != b"content-type"]
    headers.append((b"x-request-id", outcome.request_id.encode("ascii")))
    headers += outcome_headers(outcome, with_key=with_key)
    body = rendered.body
    if _must_be_coded(request_headers):
        body = gzipped(body)
        headers.append((b"content-encoding", b"gzip"))
    return Answer(entry.status, headers, body)


def _must_be_coded(request_headers: Headers) -> bool:
    # Nearly every client takes plain bytes, so the list is only read where it refuses something.
    value = header(request_headers, b"accept-encoding")
    return value is not None and b"q=0" in value and refuses_identity(request_headers)


def error_answer(error: ProxyError, outcome: Outcome, *, with_key: bool = False) -> Answer:
    """The error's status and OpenAI envelope, with the outcome and, where known, `Retry-After`."""
    headers: HeaderList = [
        (b"content-type", b"application/json"),
        (b"x-request-id", outcome.request_id.encode("ascii")),
    ]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", b"%d" % max(0, math.ceil(error.retry_after_seconds))))
    headers += outcome_headers(outcome, with_key=with_key)
    return Answer(error.status, headers, orjson.dumps(error.envelope()))
