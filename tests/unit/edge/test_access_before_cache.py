"""The edge in memory: who is refused before anything of the request is looked at."""

from collections.abc import AsyncIterator
from hashlib import sha256

import httpx
import pytest

from proxy.edge.app import Edge, create_app
from proxy.settings.models import Settings
from tests.unit.engine.kit import FaultyStore

pytestmark = pytest.mark.anyio

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(instant=True)


@pytest.fixture
async def app(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Edge]:
    monkeypatch.setattr("proxy.runtime.runtime.build_tiers", lambda *_: [store])
    key_hash = "sha256:" + sha256(b"mp-ann").hexdigest()
    app = create_app(
        Settings.model_validate(
            {
                "server": {"access_log": False, "max_body_bytes": 1000},
                "clients": [{"name": "ann", "key_hashes": [key_hash]}],
                "upstreams": {"u": {"base_url": "http://127.0.0.1:1/v1", "api_keys": ["sk-u"]}},
            }
        )
    )
    await app.runtime.start()
    yield app
    await app.runtime.stop()


async def asked(app: Edge, key: str | None, **over: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/v1/chat/completions", json={**BODY, **over}, headers=headers)


@pytest.mark.parametrize("key", [None, "mp-nobody"])
async def test_B72_who_is_not_known_causes_no_read_of_the_cache(
    key: str | None, app: Edge, store: FaultyStore
) -> None:
    refused = await asked(app, key)

    assert refused.status_code == 401
    assert store.log == []
    await asked(app, "mp-ann")
    assert store.log != [], "whereas a known client's request is looked up"


async def test_B72_what_is_too_large_causes_no_read_of_the_cache(
    app: Edge, store: FaultyStore
) -> None:
    assert (await asked(app, "mp-ann", user="x" * 1000)).status_code == 413
    assert store.log == []
