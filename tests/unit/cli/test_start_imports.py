"""What a start does not import: each of these costs time and memory that most never need."""

import subprocess
import sys

import pytest

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
