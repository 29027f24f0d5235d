"""Over uvloop, whose callbacks wait while it reads: answers to HEAD leave before what comes next."""

import asyncio
import socket
from contextlib import closing

import uvicorn
import uvloop
from uvicorn.server import ServerState

from proxy.edge.asgi import Receive, Scope, Send
from proxy.edge.http_protocol import BoundedProtocol

ASKED = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
RUBBISH = b"rubbish\r\n\r\n"


def test_B60_an_answer_to_head_is_not_overtaken_by_that_to_what_follows() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        received = runner.run(_answers())

    told, _, next_told = received.partition(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 200 ")
    assert next_told.startswith(b"HTTP/1.1 400 ")


async def _answers() -> bytes:
    """What comes for a HEAD, and for rubbish that arrives while it is answered."""
    client = socket.socket()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        client.send(RUBBISH)
        headers = [(b"content-length", b"3")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, lifespan="off", log_level="error", access_log=False)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedProtocol(config, state, {}), "127.0.0.1", 0)
    with closing(client):
        client.setblocking(False)
        await loop.sock_connect(client, server.sockets[0].getsockname())
        await loop.sock_sendall(client, ASKED)
        received = b""
        while more := await loop.sock_recv(client, 65_536):
            received += more
    server.close()
    return received
