"""Content codings (RFC 9110 section 8.4): which can be read along, and reading them."""

import zlib
from typing import Protocol

import zstandard

from proxy.core.wire import Headers

READABLE = ("gzip", "deflate", "zstd")


class UnreadableCoding(ValueError):
    """The bytes are not in the coding that the header names, or in one that is not known here."""


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

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._decoder = zlib.decompressobj(window_bits)

    def feed(self, coded: bytes) -> bytes:
        try:
            plain = self._decoder.decompress(coded)
            while rest := self._decoder.unused_data:
                self._decoder = zlib.decompressobj(self._window_bits)
                plain += self._decoder.decompress(rest)
        except zlib.error as error:
            raise UnreadableCoding(str(error)) from error
        return plain


class _Zstd:
    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor().decompressobj()

    def feed(self, coded: bytes) -> bytes:
        try:
            return self._decoder.decompress(coded)
        except zstandard.ZstdError as error:
            raise UnreadableCoding(str(error)) from error


def decoder(content_encoding: str | None) -> Decoder:
    """A decoder for one content coding. Raises `UnreadableCoding` for one not known here."""
    match (content_encoding or "identity").strip().lower():
        case "identity" | "":
            return _Identity()
        case "gzip" | "x-gzip":
            return _Zlib(zlib.MAX_WBITS | 16)
        case "deflate":
            return _Zlib(zlib.MAX_WBITS)
        case "zstd":
            return _Zstd()
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
