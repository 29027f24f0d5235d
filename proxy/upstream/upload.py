"""A body that is sent as it comes: whether it was begun, and whose fault its failure is."""

from collections.abc import AsyncIterator


class Upload:
    """An iterator that remembers whether a byte was taken and how the source failed.

    HTTP clients wrap an error of the body's source in one of their own; `failure` is the
    original, so that a client that goes away is not taken for an upstream that failed.
    """

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self.begun = False
        self.failure: Exception | None = None

    @classmethod
    def of(cls, body: bytes | AsyncIterator[bytes] | None) -> "Upload | None":
        """`body` as an upload; None where it is in memory."""
        if body is None or isinstance(body, bytes | cls):
            return body if isinstance(body, cls) else None
        return cls(body)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.begun = True
        try:
            return await anext(self._source)
        except StopAsyncIteration:
            raise
        except Exception as error:  # whatever the source raises is kept, and raised on
            self.failure = error
            raise
