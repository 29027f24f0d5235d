"""The servers that are measured, and those they need: each a process of its own, on loopback."""

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.machine import LOAD_CORE, SERVER_CORE, pin

HOST = "127.0.0.1"
START_SECONDS = 30.0
_INSTALL = Path(__file__).parents[1] / "scripts" / "apt-install.sh"
_POLL_SECONDS = 0.002
_SHOWN_CHARACTERS = 4_000
_PROXY = (sys.executable, "-c", "from proxy.cli.main import main; main()")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens; `pid` is its first process."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        """The root of the server, without a slash at the end."""
        return f"http://{HOST}:{self.port}"


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str) -> str:
    """Where a program is; Debian's package of the same name is installed if it is not there."""
    # nginx is where only root looks.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        print(f"{name} is not here; installing Debian's package {name}", flush=True)
        subprocess.run([_INSTALL, name], check=False)  # a service that does not start is no loss
        found = shutil.which(name, path=path)
    assert found is not None, f"{name} is needed, and could not be installed"
    return found


def program_version(name: str, flag: str) -> str:
    """The program and the first version that it tells."""
    told = subprocess.run([program(name), flag], check=False, capture_output=True, text=True)
    found = re.search(r"\d+(\.\d+)+", told.stdout + told.stderr)
    return f"{name} {found[0]}" if found else name


@contextmanager
def started(
    command: Sequence[str],
    port: int | Path,
    *,
    core: int,
    text: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    seconds: float = START_SECONDS,
) -> Iterator[Running]:
    """Run a server; it listens when the block begins, and has ended when it ends.

    A path for the port is a file that the server writes it to. What it writes to stderr stands in
    `text`; `env` is added to the environment. Raises RuntimeError where it does not come up within
    `seconds`.
    """
    with (
        text.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=_env() | dict(env or {}),
            cwd=cwd,
        ) as server,
    ):
        pin(server.pid, core)
        try:
            deadline = time.monotonic() + seconds
            while (listens := _listens(port)) is None:
                if server.poll() is not None or time.monotonic() > deadline:
                    said = text.read_text()[-_SHOWN_CHARACTERS:]
                    raise RuntimeError(f"{command} did not come up:\n{said}")
                time.sleep(_POLL_SECONDS)
            yield Running(server.pid, listens)
        finally:
            server.terminate()


@contextmanager
def proxy(
    upstream: Running,
    overrides: Mapping[str, Any],
    *,
    core: int = SERVER_CORE,
    transport: str | None = None,
) -> Iterator[Running]:
    """`magic-proxy serve`, in front of one upstream, with its defaults but for `overrides`.

    `transport` is the client towards the upstream. Requests are not logged unless `overrides` say
    so.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="magic-proxy-bench-") as directory:
        file = Path(directory) / "proxy_config.yaml"
        towards = {"base_url": f"{upstream.url}/v1"}
        if transport is not None:
            towards["transport"] = transport
        settings = {
            "upstreams": {"bench": towards},
            "store": {"disk": {"path": str(Path(directory) / "cache.sqlite3")}},
        } | dict(overrides)
        settings["server"] = {"access_log": False} | settings.get("server", {}) | {"port": port}
        file.write_text(yaml.safe_dump(settings))
        command = [*_PROXY, "serve", "--config", str(file)]
        with started(command, port, core=core, text=Path(directory) / "stderr") as running:
            yield running


@contextmanager
def upstream() -> Iterator[Running]:
    """The stand-in for the API, without delay; see `bench/upstream.py`."""
    with _module("bench.upstream", core=LOAD_CORE) as running:
        yield running


@contextmanager
def paced(*options: str) -> Iterator[Running]:
    """The upstream that takes its time and counts; see `bench/paced.py`."""
    with _module("bench.paced", *options, core=LOAD_CORE) as running:
        yield running


@contextmanager
def peer(name: str, answer: Path) -> Iterator[Running]:
    """A plain server that gives the bytes of `answer`; see `bench/peers.py`."""
    with _module("bench.peers", name, "--answer", str(answer), core=SERVER_CORE) as running:
        yield running


@contextmanager
def redis() -> Iterator[Running]:
    """A Redis server of our own, without persistence."""
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", HOST]
    command += ["--save", "", "--appendonly", "no"]
    with (
        tempfile.TemporaryDirectory(prefix="magic-proxy-bench-") as directory,
        started(command, port, core=LOAD_CORE, text=Path(directory) / "stderr") as running,
    ):
        yield running


def get(server: Running, path: str) -> bytes:
    """The body of one GET; anything but a 200 is an error."""
    return _ask(server, "GET", path, None, {})[1]


def post(
    server: Running, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[Mapping[str, str], bytes]:
    """Headers (names in lower case) and body of one POST; anything but a 200 is an error."""
    return _ask(server, "POST", path, body, headers)


def _ask(
    server: Running, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
) -> tuple[Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=30)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        content = response.read()
        assert response.status == http.HTTPStatus.OK, content
        return {name.lower(): value for name, value in response.getheaders()}, content
    finally:
        connection.close()


@contextmanager
def _module(name: str, *arguments: str, core: int) -> Iterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", name, *arguments, "--port", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="magic-proxy-bench-") as directory,
        started(command, port, core=core, text=Path(directory) / "stderr") as running,
    ):
        yield running


def _listens(at: int | Path) -> int | None:
    """The port, once somebody listens there."""
    port = at if isinstance(at, int) else int(at.read_text() or 0) if at.exists() else 0
    with socket.socket() as probe:
        return port if port and probe.connect_ex((HOST, port)) == 0 else None


def _env() -> dict[str, str]:
    """This environment without what would change the proxy's settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAGIC_PROXY", "OPENAI", "REDIS"))
    }
