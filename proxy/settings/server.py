"""`server`: where the proxy listens, and how it starts and stops."""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from proxy.settings.types import Bytes, BytesOrNone, NotBool, Positive, Seconds, Section, Text, Wait


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"  # every decision
    INFO = "info"  # starts, stops, changes of state
    WARNING = "warning"  # what an operator should look at
    ERROR = "error"  # what does not work


AUTO: Final = "auto"
_MOST_WORKERS: Final = 256


def _workers(value: Any) -> Any:
    if value == AUTO:
        return value
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= _MOST_WORKERS:
        return number
    raise ValueError(f"must be a whole number from 1 to {_MOST_WORKERS}, or `{AUTO}`")


Workers: TypeAlias = Annotated[
    # The bounds are for the JSON Schema; it is the function that tells of both alternatives.
    Annotated[int, Field(ge=1, le=_MOST_WORKERS)] | Literal["auto"],
    BeforeValidator(_workers),
]


class ServerSettings(Section):
    """Where the proxy listens, and how it starts and stops."""

    host: Text = Field(default="127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535), NotBool] = Field(
        default=8080, description="Port to listen on; 0 takes a free one."
    )
    workers: Workers = Field(
        default=1,
        description="How many processes serve; `auto` is one for each core that this one may use.",
    )
    worker_timeout_seconds: Annotated[float, Field(ge=2, allow_inf_nan=False), NotBool] = Field(
        default=30.0,
        description="A worker whose event loop stands still for so long is ended and replaced.",
    )
    max_body_bytes: Bytes = Field(
        default=20 * 1024 * 1024,
        description="Largest body of a request that must be read whole (chat, embeddings); a "
        "larger one is answered with 413. Other uploads are streamed and have no limit.",
    )
    request_head_seconds: Wait = Field(
        default=30.0,
        description="How long a client may take for the head of a request, and for its first one "
        "to begin; after that the connection is closed, with 408 if something came.",
    )
    request_gap_seconds: Wait = Field(
        default=60.0,
        description="How long a client may send nothing in the middle of a body that is read; "
        "after that the answer is 408.",
    )
    max_connections: Positive | None = Field(
        default=None,
        description="Most connections of one worker; more are answered with 503 and closed. Null "
        "is no limit.",
    )
    hot_path_bytes: BytesOrNone = Field(
        default=32 * 1024 * 1024,
        description="Memory for answering hits where they are received, without the server's "
        "parser: for requests that repeat byte for byte, heads of requests, and entries as they "
        "were decoded; 0 switches this off.",
    )
    hot_path_request_bytes: Bytes = Field(
        default=64 * 1024,
        description="The longest request that is answered so, its head included. Longer ones take "
        "the ordinary path, which reads long bodies in a thread; one that is answered here holds "
        "up all others meanwhile, for some 2 microseconds a KB.",
    )
    websocket_idle_seconds: Wait | None = Field(
        default=600.0,
        description="How long a WebSocket may be silent in both directions before it is closed; "
        "null is no limit.",
    )
    shutdown_grace_seconds: Seconds = Field(
        default=30.0, description="How long a stop waits for the answers under way."
    )
    access_log: bool = Field(default=True, description="Log one line for each request.")
    log_level: Annotated[
        LogLevel, BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
    ] = Field(default=LogLevel.INFO, description="How much is logged.")
    insecure_open: bool = Field(
        default=False,
        description="Allow `clients: open` on an address that other machines reach: whoever "
        "reaches it then spends your keys.",
    )
