"""Processes that are killed and started again: the proxies, and Redis."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.processes import HOST, free_port

START_SECONDS = 30.0
_PROXY = (sys.executable, "-c", "from proxy.cli.main import main; main()")


class Restartable:
    """A server on a port that it keeps; what it writes stands in files, one pair for each start."""

    def __init__(self, name: str, command: Sequence[str], port: int, directory: Path) -> None:
        self.name = name
        self.port = port
        self.starts = 0
        self._command = command
        self._directory = directory
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._server is not None, f"{self.name} does not run"
        return self._server.pid

    @property
    def runs(self) -> bool:
        return self._server is not None and self._server.poll() is None

    @property
    def written(self) -> str:
        """All that it wrote to stderr since its last start."""
        return self._file("err").read_text(errors="replace")

    async def start(self) -> None:
        """Start, and return when it listens. Raises RuntimeError where it does not."""
        self.starts += 1
        self._server = self._started()
        deadline = time.monotonic() + START_SECONDS
        while not _listens(self.port):
            if not self.runs or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not come up:\n{self.written}")
            await asyncio.sleep(0.02)

    def _started(self) -> subprocess.Popen[bytes]:
        with self._file("out").open("wb") as out, self._file("err").open("wb") as err:
            return subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=_env()
            )

    async def end(self, sign: signal.Signals) -> int:
        """Send a signal, wait for the end, and say with which code it came."""
        assert self._server is not None
        self._server.send_signal(sign)
        code = await asyncio.to_thread(self._server.wait)
        self._server = None
        return code

    def kill_now(self) -> None:
        """For the way out, whatever happened."""
        if self.runs and self._server is not None:
            self._server.kill()
            self._server.wait()

    def _file(self, kind: str) -> Path:
        return self._directory / f"{self.name}-{self.starts}.{kind}"


def proxy(name: str, settings: Mapping[str, Any], directory: Path) -> Restartable:
    """`magic-proxy serve` with a settings file of its own."""
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    port: int = settings["server"]["port"]
    return Restartable(name, [*_PROXY, "serve", "--config", str(file)], port, directory)


def redis(directory: Path) -> Restartable:
    """A Redis server without persistence: each start begins empty."""
    program = shutil.which("redis-server")
    assert program is not None, "no redis-server here: scripts/ensure-redis.sh installs it"
    port = free_port()
    command = [program, "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no"]
    return Restartable("redis", command, port, directory)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _env() -> dict[str, str]:
    """This environment without what would change the proxies' settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAGIC_PROXY", "OPENAI", "REDIS"))
    }
