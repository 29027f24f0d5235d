"""Errors that repeat the key that they were asked with: clients don't see it."""

from collections.abc import AsyncIterator
from typing import Final

from proxy.core.wire import Headers
from proxy.errors import UpstreamError
from proxy.upstream.base import UpstreamResponse
from proxy.upstream.classify import LONGEST_BODY, coding_of, plain
from proxy.upstream.config import KeySecret
from proxy.upstream.replay import read_ahead

_FIRST_ERROR: Final = 400
# A shorter one (`EMPTY`, `ollama`) is no secret, and may be a word of the message.
_SHORTEST: Final = 16
# A coded error has to come whole; one that stalls passes as it is.
_CODED_SECONDS: Final = 5.0
_OF_THE_CODED: Final = frozenset({b"content-encoding", b"content-length"})


class Mask:
    """Replaces a key by its fingerprint in bytes of any split, which keep their length. Pure."""

    def __init__(self, secret: KeySecret) -> None:
        self._key = secret.value.encode()
        length = len(self._key)
        self._shown = secret.fingerprint.encode().ljust(length, b"*")[:length]
        self._held = b""

    def whole(self, text: bytes) -> bytes:
        """All of a text."""
        return text.replace(self._key, self._shown)

    def feed(self, part: bytes) -> bytes:
        """What can be passed on; an end that may be the start of the key is held back."""
        text = self.whole(self._held + part)
        most = min(len(self._key) - 1, len(text))
        held = next((n for n in range(most, 0, -1) if text.endswith(self._key[:n])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> bytes:
        """What is held, when nothing more comes."""
        held, self._held = self._held, b""
        return held


class _Masked:
    """An answer whose headers and plain body don't show a key."""

    def __init__(self, response: UpstreamResponse, mask: Mask) -> None:
        self._response = response
        self._mask = mask
        self.status = response.status
        self.headers = _masked(response.headers, mask)
        self.trailers = response.trailers

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.aiter_raw():
                if passed := self._mask.feed(chunk):
                    yield passed
        except UpstreamError:
            if rest := self._mask.flush():
                yield rest
            raise
        if rest := self._mask.flush():
            yield rest

    async def aclose(self) -> None:
        await self._response.aclose()


class _Plain:
    """An error that was read, decoded and masked."""

    def __init__(self, coded: UpstreamResponse, body: bytes, mask: Mask) -> None:
        self._coded = coded
        self._body = mask.whole(body)
        self.status = coded.status
        kept = [pair for pair in coded.headers if pair[0].lower() not in _OF_THE_CODED]
        length = (b"content-length", b"%d" % len(body))
        self.headers = _masked((*kept, length), mask)
        self.trailers = coded.trailers

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        yield self._body

    async def aclose(self) -> None:
        await self._coded.aclose()


async def masked(response: UpstreamResponse, secret: KeySecret) -> UpstreamResponse:
    """The answer as clients may see it: an error without the key, should it repeat that.

    A body in a coding that is read here, and shows the key, is passed on plain. Raises as
    `read_ahead` does.
    """
    if response.status < _FIRST_ERROR or len(secret.value) < _SHORTEST:
        return response
    mask = Mask(secret)
    lower = tuple((name.lower(), value) for name, value in response.headers)
    if coding_of(lower) == b"identity":
        return _Masked(response, mask)
    read = await read_ahead(response, LONGEST_BODY, _CODED_SECONDS)
    body = plain(lower, read.head)
    if mask.whole(body) != body:
        return _Plain(read, body, mask)
    read.headers = _masked(read.headers, mask)
    return read


def _masked(headers: Headers, mask: Mask) -> Headers:
    return tuple((name, mask.whole(value)) for name, value in headers)
