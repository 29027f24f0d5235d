"""Content codings (RFC 9110 section 8.4): which can be read along, and reading them."""

import re
import zlib
from typing import Final, Protocol

import zstandard

from proxy.core.wire import Headers

READABLE = ("gzip", "deflate", "zstd")
_READ: Final = frozenset({*READABLE, "x-gzip", "identity"})
_ALL_READABLE: Final = re.compile(rb"(?:(?:gzip|deflate|zstd|identity)(?:, ?|$))*")

# A few KB can be made to unfold to gigabytes. No answer that is read is longer.
MOST_PLAIN_BYTES: Final = 256 * 1024 * 1024
# So many coded bytes unfold to 128 MB at most: by then it is known that there are too many.
_ZSTD_BYTES_AT_ONCE: Final = 4096


class UnreadableCoding(ValueError):
    """The bytes are not in the coding that the header names, or in one that is not known here.

    Or they unfold to more than is ever read at once.
    """


class Decoder(Protocol):
    """Takes coded bytes in any split and gives the plain ones."""

    def feed(self, coded: bytes) -> bytes:
        """Plain bytes for what has come so far. Raises `UnreadableCoding`."""
        ...


class _Identity:
    def feed(self, coded: bytes) -> bytes:
        return coded


class _Zlib:
    """One gzip member after another (RFC 1952 section 2.2), or one zlib stream."""

    def __init__(self, window_bits: int, most_bytes: int) -> None:
        self._window_bits = window_bits
        self._most_bytes = most_bytes
        self._decoder = zlib.decompressobj(window_bits)

    def feed(self, coded: bytes) -> bytes:
        most = self._most_bytes + 1
        try:
            plain = self._decoder.decompress(coded, most)
            while len(plain) < most and (rest := self._decoder.unused_data):
                self._decoder = zlib.decompressobj(self._window_bits)
                plain += self._decoder.decompress(rest, most - len(plain))
        except zlib.error as error:
            raise UnreadableCoding(str(error)) from error
        if len(plain) == most:
            raise _too_long()
        return plain


class _Zstd:
    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._decoder = zstandard.ZstdDecompressor().decompressobj()

    def feed(self, coded: bytes) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            for at in range(0, len(coded), _ZSTD_BYTES_AT_ONCE):
                parts.append(self._decoder.decompress(coded[at : at + _ZSTD_BYTES_AT_ONCE]))
                size += len(parts[-1])
                if size > self._most_bytes:
                    raise _too_long()
        except zstandard.ZstdError as error:
            raise UnreadableCoding(str(error)) from error
        return b"".join(parts)


def _too_long() -> UnreadableCoding:
    return UnreadableCoding("the plain bytes are too many")


def decoder(content_encoding: str | None, *, most_bytes: int = MOST_PLAIN_BYTES) -> Decoder:
    """A decoder for one content coding. Raises `UnreadableCoding` for one not known here.

    No bytes that are fed at once may unfold to more than `most_bytes`.
    """
    match (content_encoding or "identity").strip().lower():
        case "identity" | "":
            return _Identity()
        case "gzip" | "x-gzip":
            return _Zlib(zlib.MAX_WBITS | 16, most_bytes)
        case "deflate":
            return _Zlib(zlib.MAX_WBITS, most_bytes)
        case "zstd":
            return _Zstd(most_bytes)
        case other:
            raise UnreadableCoding(f"the content coding {other!r} can't be read")


def accepted(headers: Headers) -> dict[str, bool]:
    """What the client's `Accept-Encoding` says of each coding it names (`q=0` is a refusal)."""
    said: dict[str, bool] = {}
    for name, value in headers:
        if name == b"accept-encoding":
            for part in value.decode("latin-1").split(","):
                coding, _, parameters = part.partition(";")
                refused = parameters.replace(" ", "").lower() in {
                    "q=0",
                    "q=0.0",
                    "q=0.00",
                    "q=0.000",
                }
                if coding := coding.strip().lower():
                    said[coding] = not refused
    return said


def readable_accept_encoding(headers: Headers) -> bytes:
    """What to ask the upstream for: codings that both this client and the recorder can read."""
    said = accepted(headers)
    both = [coding for coding in READABLE if said.get(coding, False)]
    return ", ".join(both).encode("ascii") or b"identity"


def only_readable(accept_encoding: bytes) -> bytes:
    """What a client says in one header, less the codings that can't be read here."""
    if _ALL_READABLE.fullmatch(accept_encoding):  # as nearly always
        return accept_encoding
    headers = ((b"accept-encoding", accept_encoding),)
    taken = {coding for coding, is_taken in accepted(headers).items() if is_taken}
    if taken <= _READ:
        return accept_encoding
    return readable_accept_encoding(headers)


def wants_gzip(headers: Headers) -> bool:
    """True where the client takes gzip but no plain bytes (`identity;q=0`, or `*;q=0` alone)."""
    # Nearly every client takes plain bytes: the list is only read where it refuses something.
    if not any(name == b"accept-encoding" and b"q=0" in value for name, value in headers):
        return False
    said = accepted(headers)
    refuses_plain = not said.get("identity", said.get("*", True))
    return refuses_plain and said.get("gzip", said.get("*", False))


def gzipped(plain: bytes) -> bytes:
    """A gzip member that is the same for the same bytes."""
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(plain) + packer.flush()
