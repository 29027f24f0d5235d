"""Makes connections to one Redis server, and speaks over one in turns: commands, then replies."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from proxy.backends.redis_config import RedisConfig

Command: TypeAlias = tuple[str | bytes | int, ...]

_POOL_OPTIONS: Final = ("max_connections", "timeout")  # of a URL, but not for a connection


class RedisDialler:
    """Knows the way to a server: address, credentials, TLS.

    Raises ValueError for a URL that redis-py does not take.
    """

    def __init__(self, config: RedisConfig) -> None:
        self._options = _options(config)
        self._class: type[AbstractConnection] = self._options.pop("connection_class", Connection)
        self._connect_timeout_seconds = config.connect_timeout_seconds
        try:
            model = self._class(**self._options)
        except (RedisError, TypeError) as error:
            raise ValueError(f"the Redis URL has an option that is not taken: {error}") from error
        # Made once and shared: loading the certificates takes some 10 ms.
        self._tls = model.ssl_context if isinstance(model, SSLConnection) else None

    async def dial(self) -> AbstractConnection:
        """A new connection, ready for commands. Raises RedisError or OSError, in time."""
        connection = self._class(**self._options)
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                if self._tls is not None:
                    assert isinstance(connection, SSLConnection)
                    await asyncio.to_thread(self._tls.get)
                    connection.ssl_context = self._tls
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's gap
        except TimeoutError:
            await connection.disconnect(nowait=True)
            seconds = self._connect_timeout_seconds
            raise RedisConnectionError(f"no connection within {seconds:g} s") from None
        except BaseException:  # cancellation too: nothing may stay half open
            await connection.disconnect(nowait=True)
            raise
        return connection


async def exchange(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    """The replies in the order of `commands`; an error reply stands there as an exception.

    Raises RedisError or OSError where the connection failed. After a cancellation the connection
    must be closed: replies may still be under way.
    """
    # By hiredis, in C: redis-py's own packing takes half as much as the rest of a look-up.
    packed = b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]  # its stub means a tuple of one
    await connection.send_packed_command(packed, check_health=False)
    return [await _reply(connection) for _ in commands]


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _options(config: RedisConfig) -> dict[str, Any]:
    parsed: Mapping[str, Any] = parse_url(config.url)
    options = {name: value for name, value in parsed.items() if name not in _POOL_OPTIONS}
    options |= {
        # RESP2 needs no greeting; its replies to our commands are the same, and cost the same.
        "protocol": 2,
        "decode_responses": False,
        # One deadline stands around each batch; a second one inside only costs time.
        "socket_timeout": None,
        "socket_connect_timeout": config.connect_timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,
    }
    if config.url.startswith(("redis:", "rediss:")):
        options["socket_keepalive"] = True
    if config.ca_file is not None and config.url.startswith("rediss:"):
        options["ssl_ca_certs"] = config.ca_file
    return options
