"""What a start does not import: each of these costs time and memory that most never need."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import proxy

LOADED = """
import sys
import proxy.cli.main
from proxy.edge.app import create_app
from proxy.settings.models import Settings
create_app(Settings.model_validate({"store": "memory"}))
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    ran = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    "name",
    [
        "fastapi",  # until /admin is asked for
        "starlette",
        "httpx",  # with `transport: httpx`
        "redis",  # with a Redis store
        "proxy.standin",  # for the demo
        "proxy.workers.supervisor",  # with several workers
    ],
)
def test_a_start_leaves_out_what_it_does_not_need(name: str, loaded: set[str]) -> None:
    assert "proxy.edge.app" in loaded
    assert name not in loaded


AFTER_FORK = """
import asyncio, sys
import proxy.workers.supervisor
from proxy.edge.app import create_app
from proxy.runtime.preload import preload
from proxy.settings.models import Settings

settings = Settings.model_validate({"server": {"access_log": False}, "store": %s})
preload(settings)
before = set(sys.modules)

async def started():
    runtime = create_app(settings).runtime
    await runtime.start()
    await runtime.stop()

asyncio.run(started())
print(*(name for name in set(sys.modules) - before if name.startswith(("proxy.", "redis."))))
"""


@pytest.mark.parametrize(
    "store",
    [
        {"disk": {"path": "cache.sqlite3"}},
        {"tiers": ["redis", "disk"], "redis": {"url": "redis://127.0.0.1:1"}},
        {"tiers": ["memory"]},
    ],
    ids=["disk", "redis", "memory"],
)
def test_a_worker_imports_nothing_that_could_be_imported_before_its_fork(
    store: dict[str, Any], tmp_path: Path
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", AFTER_FORK % store],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(proxy.__file__).parents[1])},
    )

    assert ran.stdout.split() == []
