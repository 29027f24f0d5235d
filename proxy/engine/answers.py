"""Answers that need no upstream: hits, and the proxy's own errors."""

import math

import orjson

from proxy.core.cache_status import outcome_headers
from proxy.core.entry import Entry
from proxy.core.outcome import Outcome
from proxy.core.replay import Rendered
from proxy.engine.base import Answer, HeaderList, Repeatable
from proxy.errors import ProxyError


def hit_answer(
    entry: Entry,
    rendered: Rendered,
    outcome: Outcome,
    *,
    repeats: bool,
    repeats_until: float = 0.0,
    version: int = 0,
    with_key: bool,
) -> Answer:
    """The stored answer in the form asked for, with its own request id and the outcome.

    `repeats` says that the body would be the same for the same request again, until
    `repeats_until` (wall-clock seconds), while its key has this `version`.
    """
    same: HeaderList = [(b"content-type", rendered.content_type)]
    same += [pair for pair in entry.headers if pair[0] != b"content-type"]
    if rendered.content_encoding is not None:
        same.append((b"content-encoding", rendered.content_encoding))
    headers = [
        *same,
        (b"x-request-id", outcome.request_id.encode("ascii")),
        *outcome_headers(outcome, with_key=with_key),
    ]
    repeatable = None
    if repeats:
        repeatable = Repeatable(
            entry.key,
            version,
            entry.stored_at,
            entry.fresh_until,
            repeats_until,
            outcome,
            tuple(same),
            with_key,
        )
    return Answer(entry.status, headers, rendered.body, repeatable)


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
