"""What a hit is compared with: plain servers that give the same bytes.

python -m bench.peers fastapi --answer FILE --port 9000
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

# How long the upstream of `bench_coalesce` takes.
WAIT_SECONDS = 0.2

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


def fastapi_route(answer: bytes) -> App:
    """The plainest route that reads the request and gives bytes: no models, no middleware."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    return app


def plain_asgi(answer: bytes) -> App:
    """The floor of what an ASGI application can cost on this server."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]

    async def app(
        scope: Message,  # noqa: ARG001 - the interface of ASGI
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        while (await receive()).get("more_body", False):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def waiting_asgi(answer: bytes) -> App:
    """The floor of what a crowd costs: the same after `WAIT_SECONDS`, each for itself."""
    plain = plain_asgi(answer)

    async def app(
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        await asyncio.sleep(WAIT_SECONDS)
        await plain(scope, receive, send)

    return app


PEERS: dict[str, Callable[[bytes], App]] = {
    "fastapi": fastapi_route,
    "asgi": plain_asgi,
    "waiting": waiting_asgi,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--answer", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    uvicorn.run(
        PEERS[given.peer](given.answer.read_bytes()),
        port=given.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
