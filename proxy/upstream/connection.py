"""What both transports need of a connection: a TLS context, a socket's options, a place in line."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from proxy.errors import NoConnectionFree, UpstreamProtocolError
from proxy.upstream.config import UpstreamConfig

# A dead peer is noticed after 60 + 4 * 15 s, also while a model thinks and sends nothing.
_KEEPALIVE = (
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 60),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 15),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 4),
)


def socket_options() -> list[tuple[int, int, int]]:
    """TCP keep-alive, as far as this system knows its options."""
    return [
        (level, getattr(socket, name), value)
        for name, level, value in _KEEPALIVE
        if hasattr(socket, name)
    ]


def tls_context(config: UpstreamConfig) -> ssl.SSLContext:
    """The system's authorities and those of `ca_file`. Reads files: once, at start.

    Raises `OSError` and `ssl.SSLError` for a `ca_file` that can't be read.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if config.ca_file is not None:
        context.load_verify_locations(config.ca_file)
    if not config.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def is_status(number: int) -> bool:
    """Whether it is one at all (RFC 9110 section 15)."""
    return 100 <= number <= 599  # noqa: PLR2004  # as it stands there


def no_status(name: str) -> UpstreamProtocolError:
    """What an answer without one is."""
    return UpstreamProtocolError(f"The upstream {name!r} answered with a status that is none.")


def least(first: float | None, second: float | None) -> float | None:
    """The smaller; None is no limit."""
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


class Places:
    """So many requests at once as there may be connections; the others wait, first come first."""

    def __init__(self, config: UpstreamConfig) -> None:
        limit = config.max_connections
        self._name = config.name
        self._places = None if limit is None else asyncio.Semaphore(limit)
        self._patience = config.timeouts.first_byte_seconds

    async def enter(self, seconds: float | None = None) -> Callable[[], None]:
        """Wait for a place; what is returned gives it back, once.

        The wait is no longer than `seconds`, where that is given. Raises `NoConnectionFree`.
        """
        places = self._places
        if places is None:
            return _nothing
        try:
            async with asyncio.timeout(least(self._patience, seconds)):
                await places.acquire()
        except TimeoutError:
            raise NoConnectionFree(
                f"As many connections to the upstream {self._name!r} as the proxy may have "
                "(max_connections) are in use, and none became free in time.",
                retry_after_seconds=1.0,
            ) from None
        return _Once(places.release)


class _Once:
    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work

    def __call__(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work()


def _nothing() -> None:
    """No limit, no place to give back."""
