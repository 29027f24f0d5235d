"""The entry codec: an `Entry` to the bytes that a store holds, and back.

The envelope, version 1, big endian:

    offset size
         0    4  magic `MPXE`
         4    1  envelope version, 1
         5    1  flags: bit 0 = the payload is one zstd frame
         6    2  HTTP status
         8    4  length of the header
        12    4  length of the payload, uncompressed
        16    8  stored_at      IEEE 754 double, wall-clock seconds
        24    8  fresh_until
        32    8  expires_at
        40    …  header: compact JSON object in UTF-8
         …    …  payload, up to the last four bytes
        -4    4  CRC-32 of all that stands before

The header has the members key, model, rule, form ("json", "sse"), headers ([[name, value], …],
latin-1), usage ([prompt, completion, total] or null), profile, fallback, tags; and since 0.2
tenant ("" if absent), generation (0) and took (seconds, 0). A reader passes over members that it
does not know; any other change is a new version. `tests/vectors/entries`
holds frozen bytes of every version.

When and how hard to compress was decided by `bench/bench_compression.py`.
"""

import struct
import zlib
from math import isfinite
from typing import Any, Final, cast

import orjson
import zstandard

from proxy.core.entry import Entry, EntryMeta, Form, Usage
from proxy.core.wire import Headers
from proxy.errors import EntryUnreadable

MAGIC: Final = b"MPXE"
ENVELOPE_VERSION: Final = 1

# Short chat answers (up to 2 KB) stay plain: they would lose 45 % of their bytes, but reading one
# back, 5 µs, would take 3 µs more on every hit. Above, zstd leaves 0.45 of long answers, 0.37 of
# float and 0.75 of base64 embeddings, 0.03 of SSE transcripts, for 1 µs per KB out (2 to 4 in).
COMPRESS_ABOVE_BYTES: Final = 2048
# Level 3 gains 0.01 at most for up to half as much time again, 6 is 2 to 8 times slower; -1 leaves
# 1.2 to 2 times as many bytes.
ZSTD_LEVEL: Final = 1

# A compressed payload that claims to be longer is refused before anything is allocated for it.
MAX_INFLATED_BYTES: Final = 64 * 1024 * 1024

_PREFIX: Final = struct.Struct(">4sBBHIIddd")
_EXPIRES_AT: Final = struct.Struct(">4sB27xd")
_CHECKSUM: Final = struct.Struct(">I")
_LEAST_BYTES: Final = _PREFIX.size + _CHECKSUM.size
_ZSTD: Final = 0x01
_FORMS: Final = {str(form): form for form in Form}

# A zstd context costs more to make than to use on a small payload, and serves one thread at a
# time: each is taken out of its list while it works.
_compressors: list[zstandard.ZstdCompressor] = []
_decompressors: list[zstandard.ZstdDecompressor] = []


def encode(entry: Entry, *, compress_above_bytes: int = COMPRESS_ABOVE_BYTES) -> bytes:
    """The stored form of `entry`; its payload goes through zstd where that makes it smaller.

    Costs time in proportion to the payload (see the benchmark): a payload of megabytes belongs
    in a thread. Raises ValueError for a time that is not finite or a text that is not Unicode;
    neither occurs in an entry that has a key.
    """
    times = (entry.stored_at, entry.fresh_until, entry.expires_at)
    if not all(map(isfinite, times)):
        raise ValueError("an entry has finite times")
    try:
        header = orjson.dumps(_header(entry))
    except TypeError as error:
        raise ValueError(f"the entry has no stored form: {error}") from error
    payload = entry.payload
    flags = 0
    if compress_above_bytes < len(payload) <= MAX_INFLATED_BYTES:
        compressed = _compress(payload)
        if len(compressed) < len(payload):
            payload, flags = compressed, _ZSTD
    prefix = _PREFIX.pack(
        MAGIC, ENVELOPE_VERSION, flags, entry.status, len(header), len(entry.payload), *times
    )
    value = b"".join((prefix, header, payload))
    return value + _CHECKSUM.pack(zlib.crc32(value))


def decode(value: bytes, key: str) -> Entry:
    """The entry that `value` holds, if it is the one stored under `key`.

    Raises EntryUnreadable, and nothing else, for any other bytes: cut off, changed, foreign, of
    an unknown version, or stored under another key (B51).
    """
    try:
        return _decode(value, key)
    except (
        KeyError,
        TypeError,
        ValueError,
        MemoryError,
        struct.error,
        zstandard.ZstdError,
    ) as error:
        raise EntryUnreadable(f"the stored bytes are no entry: {error!r}") from error


def peek_expiry(value: bytes) -> float | None:
    """When the stored entry expires, in wall-clock seconds, from its prefix alone.

    None where the bytes are no entry of a known version; nothing else is checked.
    """
    if len(value) < _LEAST_BYTES:
        return None
    magic, version, expires_at = _EXPIRES_AT.unpack_from(value)
    if magic != MAGIC or version != ENVELOPE_VERSION or not isfinite(expires_at):
        return None
    return cast("float", expires_at)


def meta_bytes(head: bytes) -> int | None:
    """How many bytes from its start tell all that `decode_meta` reads of an entry.

    None where `head`, the first bytes of a stored value, is of no entry of a known version.
    """
    if len(head) < _PREFIX.size:
        return None
    magic, version, _, _, header_bytes, *_ = _PREFIX.unpack_from(head)
    known = magic == MAGIC and version == ENVELOPE_VERSION
    return _PREFIX.size + header_bytes if known else None


def decode_meta(head: bytes, key: str) -> EntryMeta | None:
    """What the entry under `key` says of itself, from its first `meta_bytes`; None for any other.

    For looking through many entries: the checksum, which is over the payload too, is not checked.
    """
    end = meta_bytes(head)
    if end is None or len(head) < end:
        return None
    stored_at = _PREFIX.unpack_from(head)[6]
    try:
        header = orjson.loads(head[_PREFIX.size : end])
        if header["key"] != key or not isfinite(stored_at):
            return None
        return EntryMeta(
            key=key,
            model=_text(header["model"]),
            rule=_text(header["rule"]),
            stored_at=stored_at,
            tags=_tags(header["tags"]),
            tenant=_text(header.get("tenant", "")),
            generation=_number(header.get("generation", 0)),
        )
    except (KeyError, TypeError, ValueError, EntryUnreadable):
        return None


def _header(entry: Entry) -> dict[str, Any]:
    usage = entry.usage
    return {
        "key": entry.key,
        "model": entry.model,
        "rule": entry.rule,
        "form": entry.form,
        "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in entry.headers],
        "usage": usage and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
        "profile": entry.profile,
        "fallback": entry.fallback,
        "tags": entry.tags,
        "tenant": entry.tenant,
        "generation": entry.generation,
        "took": entry.took_seconds,
    }


def _decode(value: bytes, key: str) -> Entry:
    if len(value) < _LEAST_BYTES:
        raise EntryUnreadable("the stored bytes are too few")
    magic, version, flags, status, header_bytes, payload_bytes, *times = _PREFIX.unpack_from(value)
    if magic != MAGIC:
        raise EntryUnreadable("the stored bytes are not an entry")
    if version != ENVELOPE_VERSION:
        raise EntryUnreadable(f"envelope version {version} is not known here")
    view = memoryview(value)
    (checksum,) = _CHECKSUM.unpack_from(value, len(value) - _CHECKSUM.size)
    if zlib.crc32(view[: -_CHECKSUM.size]) != checksum:
        raise EntryUnreadable("the checksum is wrong")
    payload_at = _PREFIX.size + header_bytes
    header = orjson.loads(view[_PREFIX.size : payload_at])
    if header["key"] != key:
        raise EntryUnreadable("the entry was stored under another key")
    payload = value[payload_at : -_CHECKSUM.size]
    if flags == _ZSTD:
        payload = _inflate(payload, payload_bytes)
    elif flags or len(payload) != payload_bytes:
        raise EntryUnreadable("the payload is not of the length that was written")
    stored_at, fresh_until, expires_at = times
    if not (isfinite(stored_at) and isfinite(fresh_until) and isfinite(expires_at)):
        raise EntryUnreadable("a time is not finite")
    usage = header["usage"]
    return Entry(
        key=key,
        model=_text(header["model"]),
        rule=_text(header["rule"]),
        stored_at=stored_at,
        fresh_until=fresh_until,
        expires_at=expires_at,
        form=_FORMS[header["form"]],
        status=status,
        headers=_headers(header["headers"]),
        usage=None if usage is None else _usage(usage),
        payload=payload,
        profile=_text(header["profile"]),
        fallback=header["fallback"] is True,
        tags=_tags(header["tags"]),
        tenant=_text(header.get("tenant", "")),
        generation=_number(header.get("generation", 0)),
        took_seconds=float(_number(header.get("took", 0.0))),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise EntryUnreadable("a text of the header is not a text")
    return value


def _number(value: object) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EntryUnreadable("a number of the header is not a number")
    return value


def _tags(tags: object) -> tuple[str, ...]:
    if not isinstance(tags, list):
        raise EntryUnreadable("the tags are not a list")
    return tuple(map(_text, tags))


def _headers(pairs: list[list[str]]) -> Headers:
    try:
        return tuple([(n.encode("latin-1"), v.encode("latin-1")) for n, v in pairs])
    except AttributeError as error:
        raise EntryUnreadable("a header is not a text") from error


def _usage(counts: list[int]) -> Usage:
    prompt, completion, total = counts
    if not (type(prompt) is type(completion) is type(total) is int):
        raise EntryUnreadable("the usage is not in whole numbers")
    return Usage(prompt, completion, total)


def _compress(payload: bytes) -> bytes:
    try:
        compressor = _compressors.pop()
    except IndexError:
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    compressed = compressor.compress(payload)
    _compressors.append(compressor)
    return compressed


def _inflate(frame: bytes, payload_bytes: int) -> bytes:
    """The payload of `frame`, whose length is known beforehand (no bomb goes off here)."""
    if payload_bytes > MAX_INFLATED_BYTES:
        raise EntryUnreadable("the payload claims to be too long")
    if zstandard.frame_content_size(frame) != payload_bytes:
        raise EntryUnreadable("the payload is not of the length that was written")
    try:
        decompressor = _decompressors.pop()
    except IndexError:
        decompressor = zstandard.ZstdDecompressor()
    payload = decompressor.decompress(frame, allow_extra_data=False)
    _decompressors.append(decompressor)
    return payload
