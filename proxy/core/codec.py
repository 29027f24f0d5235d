"""The entry codec: an `Entry` to the bytes that a store holds, and back.

The envelope, version 1, big endian:

    offset size
         0    4  magic `MPXE`
         4    1  envelope version, 1
         5    1  flags: bit 0 = the payload is one zstd frame, bit 1 = the header is, and both
                 frames were made with the dictionary whose id they carry
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
holds frozen bytes of every version. Readers before 0.2 find an entry with bit 1 unreadable.

When and how hard to compress was decided by `bench/bench_compression.py`.
"""

import struct
import zlib
from collections.abc import Mapping
from math import isfinite
from types import MappingProxyType
from typing import Any, Final, cast

import orjson

from proxy.core.dictionaries import Dictionary, takes_dictionary
from proxy.core.entry import Entry, EntryMeta, Form, Usage
from proxy.core.frames import PLAIN, FrameError, Frames, frame_info
from proxy.core.wire import Headers
from proxy.errors import DictionaryMissing, EntryUnreadable

MAGIC: Final = b"MPXE"
ENVELOPE_VERSION: Final = 1

# Without a dictionary, short chat answers (up to 2 KB) stay plain: they would lose 45 % of their
# bytes, but reading one back, 5 µs, would take 3 µs more on every hit. Above, zstd leaves 0.45 of
# long answers, 0.37 of float embeddings, 0.03 of SSE transcripts, for 1 µs per KB out (2 to 4 in).
# With a dictionary: `proxy.core.dictionaries`.
COMPRESS_ABOVE_BYTES: Final = 2048

# What a payload has to shrink to: vectors in base64, at 0.75, cost a batch of a thousand hits a
# third of its time to inflate.
_WORTH: Final = 2 / 3

# A compressed payload that claims to be longer is refused before anything is allocated for it.
MAX_INFLATED_BYTES: Final = 64 * 1024 * 1024
_MAX_HEADER_BYTES: Final = 1024 * 1024

NO_DICTIONARIES: Final[Mapping[int, Dictionary]] = MappingProxyType({})

_PREFIX: Final = struct.Struct(">4sBBHIIddd")
_EXPIRES_AT: Final = struct.Struct(">4sB27xd")
_CHECKSUM: Final = struct.Struct(">I")
_LEAST_BYTES: Final = _PREFIX.size + _CHECKSUM.size
_ZSTD: Final = 0x01
_DICTIONARY: Final = 0x02
_KNOWN_FLAGS: Final = _ZSTD | _DICTIONARY
_FORMS: Final = {str(form): form for form in Form}


def encode(
    entry: Entry,
    *,
    compress_above_bytes: int = COMPRESS_ABOVE_BYTES,
    dictionary: Dictionary | None = None,
) -> bytes:
    """The stored form of `entry`; it goes through zstd where that makes it smaller by a third.

    With a dictionary the header goes too, and any payload for which the dictionary pays.

    Costs time in proportion to the payload (see the benchmark): a payload of megabytes belongs
    in a thread. Raises ValueError for a time that is not finite or a text that is not Unicode;
    neither occurs in an entry that has a key.
    """
    times = (entry.stored_at, entry.fresh_until, entry.expires_at)
    if not all(map(isfinite, times)):
        raise ValueError("an entry has finite times")
    header, payload, flags = _packed(encode_header(entry), entry, compress_above_bytes, dictionary)
    prefix = _PREFIX.pack(
        MAGIC, ENVELOPE_VERSION, flags, entry.status, len(header), len(entry.payload), *times
    )
    value = b"".join((prefix, header, payload))
    return value + _CHECKSUM.pack(zlib.crc32(value))


def encode_header(entry: Entry) -> bytes:
    """What stands beside the payload, uncompressed. Raises ValueError as `encode` does."""
    try:
        return orjson.dumps(_header(entry))
    except TypeError as error:
        raise ValueError(f"the entry has no stored form: {error}") from error


def decode(
    value: bytes, key: str, dictionaries: Mapping[int, Dictionary] = NO_DICTIONARIES
) -> Entry:
    """The entry that `value` holds, if it is the one stored under `key`.

    Raises EntryUnreadable, and nothing else, for any other bytes: cut off, changed, foreign, of
    an unknown version, or stored under another key (B51); and DictionaryMissing, which is one, for
    whole bytes that need a dictionary other than those given (by their ids).
    """
    try:
        return _decode(value, key, dictionaries)
    except (KeyError, TypeError, ValueError, MemoryError, struct.error, FrameError) as error:
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


def peek_stored_at(value: bytes) -> float | None:
    """When the entry was stored, as `peek_expiry` tells when it expires."""
    if peek_expiry(value) is None:
        return None
    return cast("float", _PREFIX.unpack_from(value)[6])


def meta_bytes(head: bytes) -> int | None:
    """How many bytes from its start tell all that `decode_meta` reads of an entry.

    None where `head`, the first bytes of a stored value, is of no entry of a known version.
    """
    if len(head) < _PREFIX.size:
        return None
    magic, version, _, _, header_bytes, *_ = _PREFIX.unpack_from(head)
    known = magic == MAGIC and version == ENVELOPE_VERSION
    return _PREFIX.size + header_bytes if known else None


def decode_meta(
    head: bytes, key: str, dictionaries: Mapping[int, Dictionary] = NO_DICTIONARIES
) -> EntryMeta | None:
    """What the entry under `key` says of itself, from its first `meta_bytes`; None for any other.

    For looking through many entries: the checksum, which is over the payload too, is not checked.
    Raises DictionaryMissing where it takes a dictionary other than those given.
    """
    end = meta_bytes(head)
    if end is None or len(head) < end:
        return None
    _, _, flags, _, _, _, stored_at, *_ = _PREFIX.unpack_from(head)
    try:
        raw = head[_PREFIX.size : end]
        if flags & _DICTIONARY:
            raw, _ = _inflated_header(raw, dictionaries)
        header = orjson.loads(raw)
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
    except DictionaryMissing:
        raise
    except (KeyError, TypeError, ValueError, FrameError, EntryUnreadable):
        return None


def _packed(
    header: bytes, entry: Entry, compress_above_bytes: int, dictionary: Dictionary | None
) -> tuple[bytes, bytes, int]:
    """Header and payload as they are stored, and the flags that say how."""
    payload = entry.payload
    if dictionary is not None and takes_dictionary(entry) and len(header) <= _MAX_HEADER_BYTES:
        small_header = dictionary.frames.compress(header)
        small = dictionary.frames.compress(payload)
        flags = _DICTIONARY | _ZSTD
        if len(small) >= len(payload):
            small, flags = payload, _DICTIONARY
        if len(small_header) + len(small) < len(header) + len(payload):
            return small_header, small, flags
    if compress_above_bytes < len(payload) <= MAX_INFLATED_BYTES:
        small = PLAIN.compress(payload)
        if len(small) <= _WORTH * len(payload):
            return header, small, _ZSTD
    return header, payload, 0


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


def _decode(value: bytes, key: str, dictionaries: Mapping[int, Dictionary]) -> Entry:
    flags, status, header_bytes, payload_bytes, *times = _checked_prefix(value)
    payload_at = _PREFIX.size + header_bytes
    raw, frames = value[_PREFIX.size : payload_at], PLAIN
    if flags & _DICTIONARY:
        raw, frames = _inflated_header(raw, dictionaries)
    header = orjson.loads(raw)
    if header["key"] != key:
        raise EntryUnreadable("the entry was stored under another key")
    payload = value[payload_at : -_CHECKSUM.size]
    if flags & _ZSTD:
        payload = _inflated(payload, payload_bytes, frames)
    if len(payload) != payload_bytes:
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


def _checked_prefix(value: bytes) -> Any:
    """The prefix from the flags on, where `value` is whole and of this version."""
    if len(value) < _LEAST_BYTES:
        raise EntryUnreadable("the stored bytes are too few")
    magic, version, *rest = _PREFIX.unpack_from(value)
    if magic != MAGIC:
        raise EntryUnreadable("the stored bytes are not an entry")
    if version != ENVELOPE_VERSION:
        raise EntryUnreadable(f"envelope version {version} is not known here")
    if rest[0] & ~_KNOWN_FLAGS:
        raise EntryUnreadable("a flag is not known here")
    (checksum,) = _CHECKSUM.unpack_from(value, len(value) - _CHECKSUM.size)
    if zlib.crc32(memoryview(value)[: -_CHECKSUM.size]) != checksum:
        raise EntryUnreadable("the checksum is wrong")
    return rest


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


def _inflated_header(frame: bytes, dictionaries: Mapping[int, Dictionary]) -> tuple[bytes, Frames]:
    """The header of `frame`, and what reads the other frame of the entry."""
    content_bytes, dictionary_id = frame_info(frame)
    if dictionary_id == 0:
        raise EntryUnreadable("the header names no dictionary")
    dictionary = dictionaries.get(dictionary_id)
    if dictionary is None:
        raise DictionaryMissing(dictionary_id)
    if content_bytes > _MAX_HEADER_BYTES:
        raise EntryUnreadable("the header claims to be too long")
    return dictionary.frames.inflate(frame), dictionary.frames


def _inflated(frame: bytes, payload_bytes: int, frames: Frames) -> bytes:
    """The payload of `frame`, whose length is known beforehand (no bomb goes off here)."""
    if payload_bytes > MAX_INFLATED_BYTES:
        raise EntryUnreadable("the payload claims to be too long")
    if frame_info(frame)[0] != payload_bytes:
        raise EntryUnreadable("the payload is not of the length that was written")
    return frames.inflate(frame)
