"""What passes through, in memory: who is asked for a body, and that each request is told once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256

import pytest

from proxy.core.outcome import CLIENT_GONE, Outcome
from proxy.edge.app import Edge, create_app
from proxy.edge.asgi import Message
from proxy.settings.models import Settings
from tests.unit.edge.kit import Client
from tests.waiting import until

pytestmark = pytest.mark.anyio

WHOLE: Message = {"type": "http.request", "body": b"abc", "more_body": False}
PART: Message = {"type": "http.request", "body": b"abc", "more_body": True}
GONE: Message = {"type": "http.disconnect"}


@pytest.fixture
async def app() -> AsyncIterator[Edge]:
    """Before an upstream that never answers."""

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(keep_silent, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        key_hash = "sha256:" + sha256(b"mp-ann").hexdigest()
        given = {
            "server": {"access_log": False},
            "store": "memory",
            "clients": [{"name": "ann", "key_hashes": [key_hash]}],
            "upstreams": {"u": {"base_url": f"http://{host}:{port}/v1", "api_keys": ["sk-u"]}},
        }
        app = create_app(Settings.model_validate(given))
        await app.runtime.start()
        yield app
        await app.runtime.stop()


async def status_of(
    app: Edge,
    receive: Callable[[], Awaitable[Message]],
    *headers: tuple[bytes, bytes],
    path: str = "/v1/files",
    key: bytes = b"mp-ann",
) -> int | None:
    """What an upload is answered with; None where it is not."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    own = [(b"host", b"x"), (b"content-length", b"6"), (b"authorization", b"Bearer " + key)]
    scope = {
        "type": "http",
        "method": "POST",
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [*own, *headers],
    }
    await app(scope, receive, send)
    return sent[0]["status"] if sent else None


async def comes(client: Client, *messages: Message) -> None:
    """One message after another, each when the one before was taken."""
    for message in messages:
        if message is GONE:
            client.leaves()
        else:
            client.sends(message["body"], more=message["more_body"])
            await until(lambda: client.is_heard)


@pytest.mark.parametrize(
    ("path", "key", "status"), [("/v1/files", b"mp-bob", 401), ("/v1/../files", b"mp-ann", 400)]
)
async def test_B72_who_is_not_let_in_is_not_asked_for_a_body(
    path: str, key: bytes, status: int, app: Edge
) -> None:
    async def receive() -> Message:
        """What has the server say 100 to a client that waits for it."""
        raise AssertionError

    assert await status_of(app, receive, path=path, key=key) == status


@pytest.mark.parametrize(
    ("messages", "headers", "status"),
    [
        pytest.param([WHOLE], [(b"x-request-timeout", b"30ms")], 504, id="late"),
        pytest.param([GONE], [], None, id="gone before the body"),
        pytest.param([PART, GONE], [], None, id="gone within the body"),
        pytest.param([WHOLE, GONE], [], None, id="gone after the body"),
    ],
)
async def test_B42_each_request_is_told_once_however_it_ends_and_by_whom(
    messages: list[Message],
    headers: list[tuple[bytes, bytes]],
    status: int | None,
    app: Edge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Outcome] = []
    observer = type(app.runtime.snapshot.observer)
    monkeypatch.setattr(observer, "told", lambda _, outcome: told.append(outcome))

    client = Client(more_body=True)
    got, _ = await asyncio.gather(
        status_of(app, client.receive, *headers), comes(client, *messages)
    )

    assert got == status
    assert [(each.status, each.client) for each in told] == [(status or CLIENT_GONE, "ann")]
