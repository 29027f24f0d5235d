"""Workers that can't start: the command ends, and says why."""

import socket
import subprocess
import sys
from pathlib import Path

import yaml

from tests.integration.processes import magic_proxy

# A fault that shows in a worker alone, and at its start.
FAILING = """
import os
from proxy.runtime import Runtime
supervisor = os.getpid()
async def start(self):
    assert os.getpid() != supervisor
    raise RuntimeError("out of luck")
Runtime.start = start
from proxy.cli.main import main
main()
"""


def settings(directory: Path) -> Path:
    file = directory / "settings.yaml"
    file.write_text(yaml.safe_dump({"server": {"port": 0}, "store": "memory"}))
    return file


def test_workers_that_do_not_start_end_the_command(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAILING, "serve", "-c", settings(tmp_path), "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.count("did not start: exit code 1") == 1
    assert "out of luck" in ended.stderr, "the worker says why"
    assert "listening" not in ended.stderr


def test_B44_a_port_that_is_taken_is_an_error_for_several_workers_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        file = str(settings(tmp_path))
        ended = magic_proxy("serve", "-c", file, "--port", port, "--workers", "2")

    assert ended.returncode == 1
    assert b"in use" in ended.stderr
    assert b"Traceback" not in ended.stderr
