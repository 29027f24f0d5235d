"""What the stand-in saw: one record per request, with signals for what happens to it."""

from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.standin.signals import Signal


@dataclass(slots=True, eq=False)
class Recorded:
    """One request.

    `raw_path` and `query` are as they stood on the wire; header names are lower case, in order,
    with repeats. `body` is empty where only `size` and `sha256` are kept (uploads).
    """

    method: str
    raw_path: str
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""
    size: int = 0
    sha256: str = ""
    chunks_sent: int = 0
    body_read: Signal = field(default_factory=lambda: Signal("request body read"))
    headers_sent: Signal = field(default_factory=lambda: Signal("answer's headers sent"))
    first_byte_sent: Signal = field(default_factory=lambda: Signal("answer's first byte sent"))
    holding: Signal = field(default_factory=lambda: Signal("answer held at its gate"))
    finished: Signal = field(default_factory=lambda: Signal("answer sent to its end"))
    disconnected: Signal = field(default_factory=lambda: Signal("client went away"))

    @property
    def path(self) -> str:
        return self.raw_path

    def header(self, name: str) -> str | None:
        """The first value of a header, or None."""
        wanted = name.lower().encode()
        for key, value in self.headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    @property
    def credential(self) -> str:
        """The bearer token, or the `api-key` header as Azure takes it, or nothing."""
        bearer = self.header("authorization")
        if bearer is not None:
            return bearer.removeprefix("Bearer ")
        return self.header("api-key") or ""

    def json(self) -> Any:
        """The body, parsed."""
        return orjson.loads(self.body)
