"""`magic-proxy key`, `explain` and `hash-key`: what the cache makes of a request, and why."""

import asyncio
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from proxy.access.base import Identity
from proxy.access.clients import hash_key
from proxy.cli.options import ConfigFile, JsonOutput, settings_file, settings_or_exit
from proxy.cli.output import fail, note, out, print_json
from proxy.cli.rendering import print_explained
from proxy.core.outcome import XCache
from proxy.core.resources import split_target
from proxy.core.wire import MODEL_ENDPOINTS, Endpoint, Headers
from proxy.engine.base import Call
from proxy.engine.explaining import Explained
from proxy.errors import NotAuthenticated, ProxyError
from proxy.runtime import Runtime, Settings
from proxy.settings.models import OPEN
from proxy.settings.store import Tier

BAD_INPUT = 2
NO_KEY = 1
# `explain` tells a script what would happen.
_EXIT = {XCache.HIT: 0, XCache.STALE: 0, XCache.MISS: 1, XCache.BYPASS: 3}


def _model_endpoint(name: str) -> Endpoint:
    if name not in MODEL_ENDPOINTS:
        raise typer.BadParameter(f"{name!r} is not one of: {', '.join(MODEL_ENDPOINTS)}.")
    return Endpoint(name)


RequestFile: TypeAlias = Annotated[
    Path, typer.Argument(help="The request's JSON body; - reads standard input.")
]
EndpointName: TypeAlias = Annotated[
    Endpoint | None,
    typer.Option(
        "--endpoint",
        "-e",
        parser=_model_endpoint,
        metavar=f"[{'|'.join(MODEL_ENDPOINTS)}]",
        help="Default: embeddings if the body has `input`.",
    ),
]
ReadTarget: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--get",
        metavar="TARGET",
        help="A GET in place of a body, such as '/v1/models?limit=2'.",
    ),
]
HeaderLines: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        "-H",
        help="A header of the request, as 'Name: value'. Without an Authorization header, "
        "$OPENAI_API_KEY is taken for it where clients show their own credential.",
    ),
]
ClientName: TypeAlias = Annotated[
    str | None, typer.Option("--client", help="Name of a configured client to speak for.")
]


def key(
    request: RequestFile = Path("-"),
    endpoint: EndpointName = None,
    get: ReadTarget = None,
    header: HeaderLines = None,
    client: ClientName = None,
    config: ConfigFile = None,
    as_json: JsonOutput = False,
) -> None:
    """Print the cache key of a request, and the canonical bytes that are hashed.

    A batch of embeddings has a key for each input. Exits with 0 for a key, 1 where the request has
    none, 2 for bad input.
    """
    settings = settings_or_exit(settings_file(config))
    explained = _explained(request, endpoint, get, header or [], client, settings)
    derivation: dict[str, Any] = explained.derivation
    items = derivation.get("items")
    if as_json:
        print_json(derivation)
    elif derivation["store_key"] is not None:
        print(derivation["store_key"])
        print(derivation["canonical"])
    elif items:
        for item in items:
            print(item["store_key"])
    else:
        fail(f"no key: {explained.reason}")
    if derivation["store_key"] is None and not items:
        raise typer.Exit(NO_KEY)


def explain(
    request: RequestFile = Path("-"),
    endpoint: EndpointName = None,
    get: ReadTarget = None,
    header: HeaderLines = None,
    client: ClientName = None,
    config: ConfigFile = None,
    as_json: JsonOutput = False,
) -> None:
    """Tell which rule a request falls under, what is in its key, and what the store holds.

    Looks into the shared tiers (disk, Redis); the memory of a running proxy is seen by
    POST /admin/explain only. Exits with 0 for a hit, 1 for a miss, 3 for a bypass, 2 for bad
    input.
    """
    settings = settings_or_exit(settings_file(config))
    explained = _explained(request, endpoint, get, header or [], client, settings)
    if set(settings.store.resolved_tiers) == {Tier.MEMORY}:
        note("the store is memory alone: only POST /admin/explain knows what a running proxy holds")
    if as_json:
        print_json(explained.as_dict())
    else:
        print_explained(explained, out)
    raise typer.Exit(_EXIT.get(explained.verdict, NO_KEY))


def hash_key_command(
    key: Annotated[
        str | None, typer.Argument(help="The key; asked for, or read from a pipe, if absent.")
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Print the hash under which a client's or an admin's key stands in the settings."""
    if key is None:
        piped = not sys.stdin.isatty()
        key = sys.stdin.readline() if piped else typer.prompt("Key", hide_input=True)
    key = key.strip()
    if not key:
        fail("the key is empty")
        raise typer.Exit(BAD_INPUT)
    hashed = hash_key(key)
    if as_json:
        print_json({"key_hash": hashed})
    else:
        print(hashed)


def _explained(
    request: Path,
    endpoint: Endpoint | None,
    get: str | None,
    lines: list[str],
    client: str | None,
    settings: Settings,
) -> Explained:
    try:
        asked = _asked(request, endpoint, tuple(_headers(lines, settings)), get)
        return asyncio.run(_ask(settings, asked, client))
    except OSError as error:
        fail(f"{request}: {error.strerror}")
    except (ProxyError, ValueError) as error:
        fail(str(error))
    raise typer.Exit(BAD_INPUT)


def _asked(request: Path, endpoint: Endpoint | None, headers: Headers, get: str | None) -> Call:
    """The request, of nobody yet. Raises OSError and ValueError."""
    path, query, body = "", "", b""
    if get is not None:
        endpoint = Endpoint.RESOURCE
        path, query = split_target(get)
    else:
        body = sys.stdin.buffer.read() if str(request) == "-" else request.read_bytes()
        endpoint = endpoint or _endpoint_of(body)
    return Call(endpoint, path, query, headers, body, Identity(), request_id="")


async def _ask(settings: Settings, asked: Call, client: str | None) -> Explained:
    runtime = Runtime(settings)
    await runtime.start()
    try:
        call = replace(asked, identity=_identity(runtime, settings, asked.headers, client))
        snapshot = runtime.snapshot
        if call.endpoint is Endpoint.RESOURCE:
            return await snapshot.resources.explain(call)
        return await snapshot.service.explain(call)
    finally:
        await runtime.stop()


def _identity(
    runtime: Runtime, settings: Settings, headers: Headers, client: str | None
) -> Identity:
    if client is None:
        try:
            return runtime.snapshot.access.identify(headers)
        except NotAuthenticated as error:
            raise ValueError(f"{error} Or say `--client NAME`.") from None
    if settings.clients is not None and settings.clients != OPEN:
        for configured in settings.clients:
            if configured.name == client:
                return Identity(client=client, tenant=configured.tenant)
    raise ValueError(f"there is no client named {client!r} in the settings")


def _headers(lines: Iterable[str], settings: Settings) -> Iterable[tuple[bytes, bytes]]:
    names: set[str] = set()
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"a header must look like 'Name: value', not {name!r}")
        names.add(name.strip().lower())
        yield name.strip().lower().encode("latin-1"), value.strip().encode("latin-1")
    own = os.environ.get("OPENAI_API_KEY")
    if settings.clients is None and own and "authorization" not in names:
        yield b"authorization", f"Bearer {own}".encode("latin-1")


def _endpoint_of(body: bytes) -> Endpoint:
    """The endpoint that a body is for, by what only the one or the other has."""
    return (
        Endpoint.EMBEDDINGS if b'"input"' in body and b'"messages"' not in body else Endpoint.CHAT
    )
