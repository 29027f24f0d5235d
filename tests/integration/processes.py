"""The proxy as people run it: `magic-proxy serve` in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import orjson
import yaml

from tests.integration.switches import switched

# For `before`: leases on a disk have a quarter of a second, which a machine that is busy with other
# things may not give.
PATIENT_LEASES = (
    "import proxy.coalesce.disk as it;"
    " it.DiskCoalescer.__init__.__kwdefaults__['timeout_seconds'] = 5.0; "
)
ENTRY = (sys.executable, "-c", "from proxy.cli.main import main; main()")


class ServedProxy:
    """One `magic-proxy serve`, with all that it writes kept line by line."""

    def __init__(
        self,
        file: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        before: str = "",
    ) -> None:
        """`before` is what the process runs first, to put a fault into it."""
        self.file = file
        self.out: list[str] = []
        self.err: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [*ENTRY[:2], before + ENTRY[2], "serve", "--config", str(file), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**_plain_environment(), **(env or {})},
        )
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()
        listening = self.wait_for_line(r"listening on (http://\S+:[1-9][0-9]*)/v1")
        self.url = listening[1]

    @property
    def base_url(self) -> str:
        """What clients take as their base URL."""
        return f"{self.url}/v1"

    @property
    def written(self) -> str:
        """All that it wrote so far, on both streams."""
        return "\n".join([*self.out, *self.err])

    def write_settings(self, settings: Mapping[str, Any] | str) -> None:
        """Replace the settings file; `reload` makes the process look."""
        self.file.write_text(
            settings if isinstance(settings, str) else yaml.safe_dump(dict(settings))
        )

    def reload(self) -> None:
        """Send SIGHUP."""
        self.process.send_signal(signal.SIGHUP)

    def wait_for_line(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """The first line on either stream that matches, as soon as it is there."""
        found: re.Match[str] | None = None

        def look() -> bool:
            nonlocal found
            found = next(filter(None, (re.search(pattern, line) for line in self._lines())), None)
            return found is not None or self.process.poll() is not None

        with self._changed:
            self._changed.wait_for(look, timeout)
        assert found is not None, f"{pattern!r} is not in what it wrote:\n{self.written}"
        return found

    def resident_bytes(self, which: str = "VmRSS") -> int:
        """Resident memory now, or its peak (`VmHWM`)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{which}:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self, timeout: float = 20.0) -> int:
        """The exit code, when it has ended and everything it wrote has been read."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _lines(self) -> list[str]:
        return [*self.out, *self.err]

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


def magic_proxy(
    *arguments: str,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end."""
    return subprocess.run(
        [*ENTRY, *arguments],
        input=stdin,
        capture_output=True,
        env={**_plain_environment(), **(env or {})},
        cwd=cwd,
        timeout=60,
        check=False,
    )


def json_lines(lines: list[str]) -> list[dict[str, Any]]:
    """The lines that are JSON objects."""
    return [orjson.loads(line) for line in lines if line.startswith("{")]


def _plain_environment() -> dict[str, str]:
    """This process's environment without what would change settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAGIC_PROXY", "OPENAI", "REDIS"))
    } | {"COLUMNS": "200", "NO_COLOR": "1", **switched()}
