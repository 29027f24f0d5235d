"""The admin API's purges: by what entries have in common, by key, and by named events."""

import logging
from collections.abc import Mapping
from typing import Final

import orjson
from fastapi import APIRouter, Request, Response

from proxy.core.canonical import parse_body
from proxy.core.purge import AGE, FLAGS, BadPurge, Purge
from proxy.core.wire import JsonValue
from proxy.edge.asgi import ClientGone, read_body
from proxy.errors import BodyTooLarge, MalformedBody, RequestError, UnknownEvent
from proxy.runtime import Runtime, Snapshot

log = logging.getLogger("magic_proxy.purges")

_MOST_BODY_BYTES: Final = 64 * 1024
_FLAG_WORDS: Final = {"true": True, "false": False}


def purge_routes(runtime: Runtime) -> APIRouter:
    """The routes that purge, under `/admin`; each needs an admin key."""
    routes = APIRouter(prefix="/admin", include_in_schema=False)

    @routes.post("/purge")
    async def purge(request: Request) -> Response:
        """Purge what the members of the body select."""
        snapshot = _admitted(runtime, request)
        return await _purged(runtime, snapshot, await _members(request))

    @routes.delete("/entries")
    async def entries(request: Request) -> Response:
        """The same by query parameters."""
        snapshot = _admitted(runtime, request)
        return await _purged(runtime, snapshot, _query(request))

    @routes.delete("/entries/{key:path}")
    async def entry(request: Request, key: str) -> Response:
        """Purge one entry: `key` is a full store key, or a digest."""
        snapshot = _admitted(runtime, request)
        query = _query(request)
        if "key" in query:
            raise _refused(BadPurge("The key stands in the path already.", "key"))
        return await _purged(runtime, snapshot, {**query, "key": key})

    @routes.post("/events/{name:path}")
    async def event(request: Request, name: str) -> Response:
        """Purge what an event of the settings means; the body is its context."""
        snapshot = _admitted(runtime, request)
        if name not in snapshot.events:
            known = ", ".join(snapshot.events) or "none"
            raise UnknownEvent(f"There is no event {name!r}; known: {known}.", param="name")
        context = await _members(request)
        try:
            purges = snapshot.events.purges(
                name, context, key_prefix=snapshot.key_prefix, dry_run=_is_dry(request)
            )
        except BadPurge as error:
            raise _refused(error) from None
        log.info("event %s", name)
        reports = await runtime.purging.purge_all(purges, key_prefix=snapshot.key_prefix)
        return _answer({"event": name, "purges": [report.as_dict() for report in reports]})

    return routes


def _admitted(runtime: Runtime, request: Request) -> Snapshot:
    """The configuration in force, for an admin; nothing of the request is read before."""
    snapshot = runtime.snapshot
    snapshot.access.require_admin(tuple(request.headers.raw))
    return snapshot


async def _purged(runtime: Runtime, snapshot: Snapshot, members: Mapping[str, object]) -> Response:
    try:
        purge = Purge.of(members, key_prefix=snapshot.key_prefix)
    except BadPurge as error:
        raise _refused(error) from None
    report = await runtime.purging.purge(purge, key_prefix=snapshot.key_prefix)
    return _answer(report.as_dict())


async def _members(request: Request) -> dict[str, JsonValue]:
    """The members of the body; an empty one has none."""
    try:
        raw = await read_body(request.receive, tuple(request.headers.raw), _MOST_BODY_BYTES)
    except BodyTooLarge:
        raise BodyTooLarge(
            f"The body of this request may have {_MOST_BODY_BYTES} bytes at most."
        ) from None
    except ClientGone:
        raise RequestError("The request broke off.", code="incomplete_request") from None
    if not raw.strip():
        return {}
    body = parse_body(raw)
    if body.flaw is not None:
        # Parsers differ on which of two equal members counts: too little might be purged.
        raise MalformedBody(f"The body can't be read exactly: {body.flaw.value}.")
    return body.fields


def _query(request: Request) -> dict[str, object]:
    """The query's parameters, each of the type that its member has in a body."""
    members: dict[str, object] = {}
    for name, text in request.query_params.multi_items():
        if name in members:
            raise _refused(BadPurge(f"{name} is given twice.", name))
        members[name] = text
        if name in FLAGS:
            members[name] = _FLAG_WORDS.get(text.lower(), text)
        elif name == AGE:
            members[name] = _number(text)
    return members


def _is_dry(request: Request) -> bool:
    query = _query(request)
    dry = query.pop("dry_run", False)
    if query:
        name = next(iter(query))
        raise _refused(BadPurge(f"There is no parameter {name!r}; known: dry_run.", name))
    if not isinstance(dry, bool):
        raise _refused(BadPurge("dry_run must be true or false.", "dry_run"))
    return dry


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # refused with the rest


def _refused(error: BadPurge) -> RequestError:
    return RequestError(str(error), param=error.member or None, code="invalid_purge")


def _answer(value: Mapping[str, JsonValue]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
