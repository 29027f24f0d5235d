"""Dictionaries for zstd: what they are stored as, under which keys, and which entries get one.

Answers of one kind say the same things around what they say. A dictionary holds what they share,
so that it stands in no entry; what was made with it can only be read with it. It is made of pieces
of answers: it belongs into the store that holds the answers, and nowhere else.

The stored form, version 1, big endian:

    offset size
         0    4  magic `MPXD`
         4    1  version, 1
         5    3  zeros
         8    8  trained_at     IEEE 754 double, wall-clock seconds
        16    8  expires_at
        24    …  the dictionary, as zstd defines it; its id stands inside
        -4    4  CRC-32 of all that stands before

The store keys are `{key_prefix}dict:{endpoint}:{id}`, and `{key_prefix}dict:{endpoint}:current`
for the id (in decimal) of the one to write with.
"""

import re
import struct
import zlib
from math import isfinite
from typing import Final

from proxy.core.entry import Entry
from proxy.core.frames import FrameError, Frames
from proxy.core.wire import Endpoint

# Measured by bench/bench_compression.py on whole entries: the header, half a kilobyte, goes too.
# What a dictionary leaves of plain entries, beside what zstd leaves above 2 KB without one:
#
#   chat as JSON: of 1.2 KB 0.22 (1.00), of 2.5 KB 0.33 (1.00), of 9 KB 0.36 (0.45), of 62 KB 0.33
#   (0.35); as SSE: of 1.9 KB 0.16 (1.00), of 2.8 KB 0.12 (0.35), of 9 KB 0.05 (0.12), of 62 KB 0.02
#   (0.03). One dictionary serves both forms as well as one for each.
#
# It takes 3 to 5 µs of a look-up that takes more than 100, and that the hot path spares repeated
# requests: so short entries are compressed too, in memory as everywhere.
#
# No embeddings: vectors are noise to it, of entries with 1,536 numbers it leaves 0.93, and a batch
# decodes a thousand at once.
ENDPOINTS: Final = frozenset({Endpoint.CHAT})
# Beyond, it saves less than a twentieth of JSON, for a quarter more time.
LARGEST_PAYLOAD_BYTES: Final = 64 * 1024
# 4 KB leave 5 % more of answers of 2 KB; with 64 KB it is 5 % less or 10 % more, for four times the
# memory and the transfer.
DICTIONARY_BYTES: Final = 16 * 1024
# What is longer was not made here.
LONGEST_DICTIONARY_BYTES: Final = 256 * 1024

_MAGIC: Final = b"MPXD"
_VERSION: Final = 1
_PREFIX: Final = struct.Struct(">4sB3xdd")
_CHECKSUM: Final = struct.Struct(">I")
_LEAST_BYTES: Final = _PREFIX.size + _CHECKSUM.size
_STORE_KEY: Final = re.compile(
    r"(?s:(.*))v[1-9][0-9]*:([a-z]+):[a-z0-9-]+:[0-9a-f]{64}(?::[1-9][0-9]*)?"
)
_POINTER: Final = re.compile(rb"[1-9][0-9]{0,9}")


class Dictionary:
    """A trained dictionary, ready for use from any thread; `trained_at` is wall-clock seconds.

    Raises ValueError where `content` is none.
    """

    __slots__ = ("content", "frames", "id", "trained_at")

    def __init__(self, content: bytes, *, trained_at: float) -> None:
        try:
            self.frames = Frames(content)
        except FrameError as error:
            raise ValueError(f"not a dictionary: {error}") from error
        self.content = content
        self.id = self.frames.dictionary_id
        self.trained_at = trained_at
        if self.id == 0:
            raise ValueError("a dictionary without an id can't be found again")


def family_of(store_key: str) -> str | None:
    """What entries must have in common to share a dictionary, as the start of its store key.

    None for a key whose entry gets none.
    """
    parts = _STORE_KEY.fullmatch(store_key)
    if parts is None or parts[2] not in ENDPOINTS:
        return None
    return f"{parts[1]}dict:{parts[2]}"


def takes_dictionary(entry: Entry) -> bool:
    """Whether a dictionary pays for an entry of this size."""
    return len(entry.payload) <= LARGEST_PAYLOAD_BYTES


def dictionary_key(family: str, dictionary_id: int) -> str:
    """The store key of a dictionary."""
    return f"{family}:{dictionary_id}"


def pointer_key(family: str) -> str:
    """The store key of the id of the dictionary to write with."""
    return f"{family}:current"


def encode_pointer(dictionary_id: int) -> bytes:
    """What is stored under the `pointer_key`."""
    return b"%d" % dictionary_id


def decode_pointer(value: bytes | None) -> int | None:
    """The id that a pointer names; None for anything else."""
    return int(value) if value is not None and _POINTER.fullmatch(value) else None


def encode_dictionary(dictionary: Dictionary, expires_at: float) -> bytes:
    """What is stored under the `dictionary_key`."""
    prefix = _PREFIX.pack(_MAGIC, _VERSION, dictionary.trained_at, expires_at)
    value = prefix + dictionary.content
    return value + _CHECKSUM.pack(zlib.crc32(value))


def decode_dictionary(value: bytes, dictionary_id: int) -> tuple[Dictionary, float] | None:
    """The dictionary of that id and when its value expires; None for any other bytes."""
    content = value[_PREFIX.size : -_CHECKSUM.size]
    expires_at = peek_dictionary_expiry(value)
    if expires_at is None or len(content) > LONGEST_DICTIONARY_BYTES:
        return None
    (checksum,) = _CHECKSUM.unpack_from(value, len(value) - _CHECKSUM.size)
    trained_at = _PREFIX.unpack_from(value)[2]
    if zlib.crc32(memoryview(value)[: -_CHECKSUM.size]) != checksum or not isfinite(trained_at):
        return None
    try:
        dictionary = Dictionary(content, trained_at=trained_at)
    except ValueError:
        return None
    return (dictionary, expires_at) if dictionary.id == dictionary_id else None


def peek_dictionary_expiry(value: bytes) -> float | None:
    """When a stored dictionary expires; None for bytes that are none, nothing else is checked."""
    if len(value) < _LEAST_BYTES:
        return None
    magic, version, _, expires_at = _PREFIX.unpack_from(value)
    known = magic == _MAGIC and version == _VERSION and isfinite(expires_at)
    return float(expires_at) if known else None
