"""Which medium shares the states of keys: that of the store, if it is shared, and if asked to."""

from pathlib import Path

import pytest

from proxy.runtime.sharing import build_shared
from proxy.settings.load import load_settings
from proxy.upstream.board_disk import DiskKeyBoard
from proxy.upstream.board_redis import RedisKeyBoard
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio

REDIS = "redis: {url: 'redis://127.0.0.1:1/0'}"


@pytest.mark.parametrize(
    ("store", "board"),
    [
        ("memory", type(None)),
        ("disk", DiskKeyBoard),
        ("{tiers: [memory, disk]}", DiskKeyBoard),
        (f"{{{REDIS}}}", RedisKeyBoard),
        (f"{{tiers: [memory, disk, redis], {REDIS}}}", RedisKeyBoard),
        (f"{{tiers: [disk, redis], {REDIS}, share_key_states: false}}", type(None)),
        ("{share_key_states: false}", type(None)),
    ],
)
async def test_B66_states_are_shared_where_the_store_is(
    store: str, board: type, tmp_path: Path
) -> None:
    file = tmp_path / "proxy_config.yaml"
    file.write_text(f"store: {store}\n")
    shared = build_shared(load_settings(file, env={"HOME": str(tmp_path)}), FakeClock())
    assert type(shared.board) is board
