"""Answers to batches of embeddings: one cut into answers to single inputs, and those joined again.

The bytes of vectors are taken as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson

from proxy.core.embeddings import encoded, encoding_at, is_vector
from proxy.core.recording import NotStored
from proxy.core.shares import Counts
from proxy.core.skeleton import (
    Envelope,
    Row,
    first_vector,
    read_around,
    read_skeleton,
    without_vectors,
)

# What stands around vectors is alike in most entries: it is remembered, within bounds.
_MOST_FRAMES: Final = 4096
_LONGEST_FRAME: Final = 2048


class Frame(NamedTuple):
    """What stands around the vector in an answer to one input; `counts` is what that one cost."""

    row: Row
    envelope: Envelope
    counts: Counts | None


class Piece(NamedTuple):
    """An answer to one input, ready to be joined with others; its vector may be a view of it."""

    frame: Frame
    vector: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Cut:
    """An upstream's answer to several inputs, by input: rows and vectors are in the same order.

    `in_order` says that the answer itself had them in that order.
    """

    rows: Sequence[Row]
    vectors: Sequence[bytes]
    envelope: Envelope
    counts: Counts | None
    in_order: bool

    def alone(self, place: int, counts: Counts | None) -> bytes:
        """The answer to one of the inputs alone, which cost `counts`."""
        frame = Frame(self.rows[place], self.envelope, counts)
        return joined([Piece(frame, self.vectors[place])], counts)


def joined(pieces: Sequence[Piece], counts: Counts | None) -> bytes:
    """One answer for as many inputs as there are pieces, in their order, with `counts` as usage.

    The other members are those of the first piece.
    """
    head, tail = pieces[0].frame.envelope
    parts: list[bytes | memoryview] = [head, b"["]
    for index, (frame, vector) in enumerate(pieces):
        first, second, third, index_first = frame.row
        number = b"%d" % index
        if index_first:
            parts += (first, number, second, vector, third, b",")
        else:
            parts += (first, vector, second, number, third, b",")
    parts[-1] = b"]"
    parts.append(tail)
    if counts is not None:
        parts += (b',"usage":', orjson.dumps(counts))
    parts.append(b"}")
    return b"".join(parts)


class Opener:
    """Takes stored answers to one input apart, at little cost: it remembers what they share."""

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        self._frames: dict[tuple[bytes, bytes], Frame] = {}

    def open(self, payload: bytes, encoding: str) -> Piece | None:
        """The piece, its vector in `encoding`; None for what is no answer to one input.

        Raises `NotAVector` where the vector has no form in that encoding.
        """
        place = first_vector(payload)
        if place is None:
            return None
        start, end = place
        around = payload[:start], payload[end:]
        frame = self._frames.get(around) or self._read(around)
        if frame is not None:
            if encoding_at(payload, start) == encoding:
                return Piece(frame, memoryview(payload)[start:end])
            return Piece(frame, encoded(payload[start:end], encoding))
        found = cut(payload, 1)  # the first member of that name was another
        if isinstance(found, NotStored):
            return None
        frame = Frame(found.rows[0], found.envelope, found.counts)
        return Piece(frame, encoded(found.vectors[0], encoding))

    def _read(self, around: tuple[bytes, bytes]) -> Frame | None:
        before, after = around
        read = read_around(before, after)
        if isinstance(read, NotStored):
            return None
        frame = Frame(read.rows[0], read.envelope, read.counts)
        if len(before) + len(after) <= _LONGEST_FRAME:
            if len(self._frames) >= _MOST_FRAMES:
                self._frames.clear()
            self._frames[around] = frame
        return frame


def cut(body: bytes, count: int) -> Cut | NotStored:
    """An upstream's answer to `count` inputs, or why it is none that could be stored.

    Costs time in proportion to the body: one of megabytes belongs in a thread.
    """
    skeleton, vectors = without_vectors(body)
    read = read_skeleton(skeleton, vectors, count)
    if isinstance(read, NotStored):
        return read
    if len(read.numbers) < len(vectors):  # another member has the name as well: it stays
        skeleton, vectors = without_vectors(body, frozenset(read.numbers))
        read = read_skeleton(skeleton, vectors, count)
        if isinstance(read, NotStored):  # what stood for a vector there was no JSON
            return read
    held = list(vectors.values())
    if len({vector[:1] for vector in held}) > 1 or not all(map(_is_sound, held)):
        return NotStored.UNPARSABLE
    return Cut(
        rows=[read.rows[place] for place in read.order],
        vectors=[held[place] for place in read.order],
        envelope=read.envelope,
        counts=read.counts,
        in_order=read.order == list(range(count)),
    )


def _is_sound(vector: bytes) -> bool:
    try:
        return is_vector(orjson.loads(vector))
    except orjson.JSONDecodeError:
        return False
