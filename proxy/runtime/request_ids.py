"""Request ids: unique across processes, cheap, and saying nothing about the request."""

import itertools
import secrets


class RequestIds:
    """`req_` and a random part of this process, then a count."""

    def __init__(self) -> None:
        self._prefix = f"req_{secrets.token_hex(6)}"
        self._count = itertools.count(1)

    def next(self) -> str:
        """The next id."""
        return f"{self._prefix}{next(self._count):08x}"
