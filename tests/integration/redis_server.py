"""A real redis-server for tests: on a free port or a socket, without persistence, also with TLS."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import eventually

REDIS_SERVER = "/usr/bin/redis-server"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1; it is its own authority."""

    cert_file: Path
    key_file: Path


def make_certificate(directory: Path) -> Certificate:
    """Made on the fly by the openssl command; good for a day."""
    openssl = shutil.which("openssl")
    assert openssl is not None, "the openssl command is needed for tests with TLS"
    made = Certificate(directory / "redis.crt", directory / "redis.key")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(made.key_file), "-out", str(made.cert_file)]
    subprocess.run(
        [openssl, "req", "-x509", "-days", "1", *key, *name, *files],
        check=True,
        capture_output=True,
    )
    return made


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """One server process. `url` stays the same over `stop` and `start`."""

    def __init__(
        self,
        *,
        unix_socket: Path | None = None,
        certificate: Certificate | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._unix_socket = unix_socket
        self._certificate = certificate
        self._options = tuple(options)
        self._server: subprocess.Popen[bytes] | None = None
        self.port = 0 if unix_socket else free_port()

    @property
    def url(self) -> str:
        if self._unix_socket is not None:
            return f"unix://{self._unix_socket}"
        scheme = "rediss" if self._certificate else "redis"
        return f"{scheme}://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and return when it answers."""
        assert self._server is None
        self._server = subprocess.Popen(
            [REDIS_SERVER, *self._arguments()], stdout=subprocess.DEVNULL
        )
        eventually(self._answers)

    def stop(self) -> None:
        """End it in good order; it keeps nothing."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: the kernel still takes connections, nothing is read or answered from now on."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._server.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def unread(self) -> int:
        """How many connections over TCP hold bytes that the server has not read."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # The columns: number, local and remote address, state, unsent:unread bytes.
        mine = [line for line in lines if line[1].endswith(f":{self.port:04X}")]
        # Of a listening socket (0A), the last number counts those who wait to be taken.
        return sum(line[3] != "0A" and not line[4].endswith(":00000000") for line in mine)

    def command(self, *words: str) -> bytes:
        """The first bytes of the reply to one command, over a connection of its own."""
        with self._connect() as connection:
            connection.settimeout(5.0)
            parts = [f"*{len(words)}\r\n", *(f"${len(w.encode())}\r\n{w}\r\n" for w in words)]
            connection.sendall("".join(parts).encode())
            return connection.recv(65_536)

    def _arguments(self) -> list[str]:
        where = ["--bind", "127.0.0.1", "--port", str(self.port)]
        if self._unix_socket is not None:
            where = ["--port", "0", "--unixsocket", str(self._unix_socket)]
        elif self._certificate is not None:
            cert, key = str(self._certificate.cert_file), str(self._certificate.key_file)
            where = ["--bind", "127.0.0.1", "--port", "0", "--tls-port", str(self.port)]
            where += ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert]
            where += ["--tls-auth-clients", "no"]
        return [*where, "--save", "", "--appendonly", "no", *self._options]

    def _connect(self) -> socket.socket:
        if self._unix_socket is not None:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(os.fspath(self._unix_socket))
            except BaseException:
                connection.close()
                raise
            return connection
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=1.0)
        if self._certificate is None:
            return connection
        context = ssl.create_default_context(cafile=self._certificate.cert_file)
        return context.wrap_socket(connection, server_hostname="127.0.0.1")

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, "redis-server ended at its start"
        try:
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def _end(self, sign: signal.Signals) -> None:
        if self._server is None:
            return
        self._server.send_signal(signal.SIGCONT)
        self._server.send_signal(sign)
        self._server.wait()
        self._server = None


@contextmanager
def redis_server(
    *,
    unix_socket: Path | None = None,
    certificate: Certificate | None = None,
    options: Sequence[str] = (),
) -> Iterator[RedisServer]:
    """A started server, ended on the way out."""
    server = RedisServer(unix_socket=unix_socket, certificate=certificate, options=options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
