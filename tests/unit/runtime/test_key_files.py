"""Files of keys that change: mounted secrets, editors, files that are gone for a while."""

import asyncio
import logging
from pathlib import Path

import pytest

from proxy.runtime.key_files import KeyFiles, KeyFileWatch
from proxy.settings.load import load_settings
from proxy.settings.models import Settings
from proxy.tasks import TaskGroup
from proxy.upstream.config import KeySecret
from proxy.upstream.keypool import KeyPool
from proxy.upstream.pooled_key import KeyState
from proxy.upstream.verdict import KeyLimited
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio

FILE = Path("keys")


class Mounted:
    """A secret as Kubernetes mounts it: links to a directory that is swapped as a whole."""

    def __init__(self, root: Path, keys: str) -> None:
        self.file = root / "keys"
        self._root = root
        self._number = 0
        root.mkdir()
        self.swap(keys)
        self.file.symlink_to(Path("..data") / "keys")

    def swap(self, keys: str) -> None:
        self._number += 1
        directory = self._root / f"..{self._number}"
        directory.mkdir()
        (directory / "keys").write_text(keys)
        link = self._root / "..data_tmp"
        link.symlink_to(directory.name)
        link.rename(self._root / "..data")


class Watched:
    """A pool of one key of the settings and those of a file, and what looks at it."""

    def __init__(self, settings: Settings) -> None:
        self.changes = 0
        self.settings = settings
        self.files = KeyFiles(FakeClock(), TaskGroup(), self._changed)
        upstream = settings.upstreams["up"]
        self.pool = KeyPool([KeySecret(key.secret.get_secret_value()) for key in upstream.keys])
        # Not `follow`: it would begin to look by itself.
        self.files._upstreams = settings.upstreams
        self.files._pools = {"up": self.pool}
        self.files._watch = KeyFileWatch({upstream.api_keys[1].file or FILE: ("sk-b", "sk-c")})

    def _changed(self) -> None:
        self.changes += 1

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            await self.files.look()

    @property
    def names(self) -> list[str]:
        by_fingerprint = {KeySecret(f"sk-{c}").fingerprint: c for c in "abcdef"}
        return [by_fingerprint[fingerprint] for fingerprint in self.pool.fingerprints]


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path / "secret", "sk-b # the second\n\nsk-c\n")


@pytest.fixture
def watched(mounted: Mounted, tmp_path: Path) -> Watched:
    file = tmp_path / "proxy_config.yaml"
    file.write_text(
        "clients: open\n"
        "upstreams: {up: {base_url: 'http://up/v1', api_keys: [sk-a, "
        f"{{file: '{mounted.file}', weight: 2, requests_per_minute: 7}}]}}}}\n"
    )
    return Watched(load_settings(file, env={}))


async def test_B62_a_swapped_secret_is_taken_when_it_was_seen_twice(
    watched: Watched, mounted: Mounted
) -> None:
    assert watched.names == ["a", "b", "c"]
    mounted.swap("sk-c\nsk-d\n")
    await watched.look()
    assert watched.names == ["a", "b", "c"]
    await watched.look()
    assert watched.names == ["a", "c", "d"]
    await watched.look(3)
    assert watched.changes == 1
    limits = watched.pool.states(0.0)[2].limits
    assert [limit.limit for limit in limits] == [7], "its entry's settings count for new keys too"


async def test_B62_what_is_known_of_keys_that_stay_is_kept(
    watched: Watched, mounted: Mounted
) -> None:
    leases = [watched.pool.acquire(0.0) for _ in range(3)]
    for lease in leases:
        assert lease is not None
        watched.pool.report(lease, KeyLimited(60.0), 0.0)
    mounted.swap("sk-c\nsk-d\n")
    await watched.look(2)
    assert [(status.state, status.in_flight) for status in watched.pool.states(0.0)] == [
        (KeyState.COOLING, 1),
        (KeyState.COOLING, 1),
        (KeyState.AVAILABLE, 0),
    ]


@pytest.mark.parametrize("trouble", ["gone", "empty", "binary", "comment", "control"])
async def test_B62_B69_a_file_that_is_no_good_changes_nothing_and_is_told_of_once(
    trouble: str, watched: Watched, mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    text = {"empty": "", "comment": "# sk-hidden\n", "control": "sk-hid\x01den\n"}.get(trouble)
    with caplog.at_level(logging.INFO):
        if trouble == "gone":
            mounted.file.unlink()
        elif text is not None:
            mounted.swap(text)
        else:
            mounted.file.resolve().write_bytes(b"\xff\xfesk-hidden")
        await watched.look(4)
        assert watched.names == ["a", "b", "c"]
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "its old keys stay in force" in record.getMessage()
        if trouble == "gone":
            mounted.file.symlink_to(Path("..data") / "keys")
        mounted.swap("sk-b\nsk-c\n")
        await watched.look(3)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "hid" not in caplog.text
    assert watched.changes == 0


async def test_B62_a_file_that_is_being_written_is_not_taken_at_its_half(
    watched: Watched, mounted: Mounted
) -> None:
    target = mounted.file.resolve()
    target.write_text("sk-d\nsk")
    await watched.look()
    target.write_text("sk-d\nsk-e\n")
    await watched.look()
    assert watched.names == ["a", "b", "c"]
    await watched.look()
    assert watched.names == ["a", "d", "e"]


async def test_B69_changes_are_told_by_fingerprint(
    watched: Watched, mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        mounted.swap("sk-c\nsk-d\n")
        await watched.look(2)
    new, gone = KeySecret("sk-d").fingerprint, KeySecret("sk-b").fingerprint
    assert [record.getMessage() for record in caplog.records] == [
        f"upstream up: keys were read again; new: {new}; gone: {gone}"
    ]


async def test_B74_a_reload_while_a_file_is_read_wins(watched: Watched, mounted: Mounted) -> None:
    mounted.swap("sk-d\n")
    await watched.look()
    looking = TaskGroup().start(watched.look(), name="look", awaited=True)
    await asyncio.sleep(0)  # it has begun to read
    watched.files._watch = KeyFileWatch({mounted.file: ("sk-e",)})
    await looking
    assert watched.names == ["a", "b", "c"]
    assert watched.changes == 0
