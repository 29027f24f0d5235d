"""One attempt's URL and body, from what the client sent and what the profile wants. Pure."""

from typing import Any
from urllib.parse import quote, unquote_plus, urlencode

import orjson

from proxy.core.splice import add_missing, set_members, with_usage_requested
from proxy.core.wire import JsonValue
from proxy.errors import RequestError
from proxy.upstream.base import Outgoing, Profile
from proxy.upstream.config import UpstreamConfig

# Work that can be done twice without harm but its cost; what other calls do is not known here.
_REPEATABLE_PATHS = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/moderations",
    "/rerank",
)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_repeatable(outgoing: Outgoing) -> bool:
    """True where a request that may already have been worked on can be sent again."""
    method = outgoing.method.upper()
    return method in _SAFE_METHODS or (
        method == "POST" and outgoing.path.rstrip("/").endswith(_REPEATABLE_PATHS)
    )


def model_in(query: str) -> str | None:
    """The model that a query names; None for none. Raises `RequestError` where it names several."""
    parts = [part for part in query.split("&") if _parameter(part) == "model"]
    named = {unquote_plus(part.partition("=")[2]) for part in parts}
    if len(named) > 1:
        raise RequestError("The query names several models.", param="model", code="invalid_value")
    return named.pop() or None if named else None


def url_for(config: UpstreamConfig, profile: Profile, outgoing: Outgoing) -> str:
    """The raw path and query after the upstream's root; its own parameters win over the client's.

    Nothing is decoded or encoded anew but the model of a WebSocket, whose query alone names it.
    """
    query = outgoing.query
    if outgoing.upgrade and profile.model is not None:
        model = f"model={quote(profile.model, safe='')}"
        parts = [model if _parameter(part) == "model" else part for part in query.split("&")]
        query = "&".join(parts)
    if config.query:
        own = {name for name, _ in config.query}
        passed = [part for part in query.split("&") if part and _parameter(part) not in own]
        query = "&".join([*passed, urlencode(config.query, quote_via=quote)])
    url = config.base_url.rstrip("/") + outgoing.path
    return f"{url}?{query}" if query else url


def body_for(
    config: UpstreamConfig, profile: Profile, outgoing: Outgoing, raw: bytes
) -> tuple[bytes, bool]:
    """The body for one profile, and whether the usage chunk was asked for on the proxy's behalf.

    The client's own bytes where there is nothing to change; only a JSON object is changed.
    """
    wants_usage = config.request_usage and outgoing.request_usage
    values: dict[str, JsonValue] = dict(profile.params)
    if profile.model is not None:
        values["model"] = profile.model
    if not (values or profile.default_params or wants_usage):
        return raw, False
    fields = _object(raw)
    if fields is None:
        return raw, False
    changed = {name: value for name, value in values.items() if not _same(fields, name, value)}
    if changed:
        raw = set_members(raw, changed)
    missing = {n: v for n, v in profile.default_params.items() if n not in fields | changed}
    if missing:
        raw = add_missing(raw, missing)
    if not wants_usage:
        return raw, False
    asked = with_usage_requested(raw, fields | changed | missing)
    return asked, asked != raw


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def _same(fields: dict[str, Any], name: str, value: JsonValue) -> bool:
    """To Python `1` is `True` too, hence the types."""
    return name in fields and type(fields[name]) is type(value) and fields[name] == value


def _parameter(part: str) -> str:
    return unquote_plus(part.partition("=")[0])
