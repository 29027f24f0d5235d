"""Answers to batches of embeddings: one cut into answers to single inputs, and those joined again.

The bytes of vectors are taken as they are. What stands around them is small: the skeleton, an
answer whose vectors are each replaced by `0`, is all that is parsed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from proxy.core.embeddings import encoded, is_vector
from proxy.core.recording import NotStored
from proxy.core.shares import Counts, counts_in
from proxy.core.splice import Member, elements, members

_VECTOR: Final = re.compile(rb'"embedding"[ \t\r\n]*:[ \t\r\n]*(?=(["\[]))')
_CLOSING: Final = {b'"': b'"', b"[": b"]"}
_PLACEHOLDER: Final = b"0"
# What stands around vectors is alike in most entries: it is remembered, within bounds.
_MOST_FRAMES: Final = 4096
_LONGEST_FRAME: Final = 2048


class Row(NamedTuple):
    """An element of `data`, taken apart where its index and its vector stand.

    `first`, `second` and `third` are what comes before, between and after the two.
    """

    first: bytes
    second: bytes
    third: bytes
    index_first: bool


class Envelope(NamedTuple):
    """An answer up to the value of `data`, and after it, without `usage` and the closing brace."""

    head: bytes
    tail: bytes


class Frame(NamedTuple):
    """What stands around the vector in an answer to one input; `counts` is what that one cost."""

    row: Row
    envelope: Envelope
    counts: Counts | None


class Piece(NamedTuple):
    """An answer to one input, ready to be joined with others."""

    frame: Frame
    vector: bytes


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
    parts = [head, b"["]
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
        match = _VECTOR.search(payload)
        if match is None:
            return None
        start = match.end()
        end = payload.find(_CLOSING[match[1]], start + 1) + 1
        around = payload[:start], payload[end:]
        frame = self._frames.get(around) or self._read(around)
        return frame and Piece(frame, encoded(payload[start:end], encoding))

    def _read(self, around: tuple[bytes, bytes]) -> Frame | None:
        before, after = around
        read = _read(before + _PLACEHOLDER + after, {len(before): 0}, count=1)
        if isinstance(read, NotStored):
            return None
        rows, envelope, counts, _ = read
        frame = Frame(rows[0], envelope, counts)
        if len(before) + len(after) <= _LONGEST_FRAME:
            if len(self._frames) >= _MOST_FRAMES:
                self._frames.clear()
            self._frames[around] = frame
        return frame


def cut(body: bytes, count: int) -> Cut | NotStored:
    """An upstream's answer to `count` inputs, or why it is none that could be stored.

    Costs time in proportion to the body: one of megabytes belongs in a thread.
    """
    skeleton, vectors = _without_vectors(body)
    read = _read(skeleton, {place: number for number, place in enumerate(vectors)}, count)
    if isinstance(read, NotStored):
        return read
    rows, envelope, counts, order = read
    held = list(vectors.values())
    if len({vector[:1] for vector in held}) > 1 or not all(map(_is_sound, held)):
        return NotStored.UNPARSABLE
    return Cut(
        rows=[rows[place] for place in order],
        vectors=[held[place] for place in order],
        envelope=envelope,
        counts=counts,
        in_order=order == list(range(count)),
    )


def _without_vectors(body: bytes) -> tuple[bytes, dict[int, bytes]]:
    """The skeleton, and the vectors by their places in it."""
    parts: list[bytes] = []
    vectors: dict[int, bytes] = {}
    place = offset = 0
    while (match := _VECTOR.search(body, place)) is not None:
        start = match.end()
        end = body.find(_CLOSING[match[1]], start + 1) + 1 or len(body)
        offset += start - place
        vectors[offset] = body[start:end]
        offset += len(_PLACEHOLDER)
        parts += (body[place:start], _PLACEHOLDER)
        place = end
    return b"".join((*parts, body[place:])), vectors


def _is_sound(vector: bytes) -> bool:
    try:
        return is_vector(orjson.loads(vector))
    except orjson.JSONDecodeError:
        return False


def _read(
    skeleton: bytes, vectors: Mapping[int, int], count: int
) -> tuple[list[Row], Envelope, Counts | None, list[int]] | NotStored:
    """Rows as they come, what stands around them, the usage, and which row each index is in.

    `vectors` are the numbers of the vectors by their places, ascending.
    """
    try:
        answer = orjson.loads(skeleton)
    except orjson.JSONDecodeError:
        return NotStored.UNPARSABLE
    if isinstance(answer, dict) and answer.get("error") is not None:
        return NotStored.ERROR_BODY
    objects = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        return NotStored.UNPARSABLE
    indices = [each.get("index") for each in objects]
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(count)):
        return NotStored.ITEM_COUNT
    taken = _taken_apart(skeleton, answer, list(vectors))
    if taken is None:
        return NotStored.UNPARSABLE
    rows, envelope = taken
    order = sorted(range(count), key=indices.__getitem__)
    return rows, envelope, counts_in(answer.get("usage")), order


def _taken_apart(
    skeleton: bytes, answer: Mapping[str, Any], vectors: Sequence[int]
) -> tuple[list[Row], Envelope] | None:
    """The same in raw bytes; None unless each row has a vector, and one of each member."""
    top = list(members(skeleton))
    if len(top) != len(answer):
        return None
    (data,) = [member for member in top if member.name == "data"]
    spans = list(elements(skeleton, data.start))
    if len(spans) != len(vectors):
        return None
    rows: list[Row] = []
    for (start, end), vector, each in zip(spans, vectors, answer["data"], strict=True):
        row = _row(skeleton[start:end], vector - start, each["index"], rows[-1:])
        if row is None:
            return None
        rows.append(row)
    outside = [member for member in top if member.name not in {"data", "usage"}]
    before = [_spelled(skeleton, member) for member in outside if member.start < data.start]
    after = [_spelled(skeleton, member) for member in outside if member.start > data.start]
    head = b"{" + b",".join([*before, b'"data":'])
    return rows, Envelope(head, b"".join([b"," + member for member in after]))


def _row(raw: bytes, vector: int, number: int, like: Sequence[Row]) -> Row | None:
    """One element of `data`, whose vector stands at `vector`; mostly it is `like` the last one."""
    for row in like:
        first, second, third, index_first = row
        digits = b"%d" % number
        written = first + digits + second
        if index_first and len(written) == vector and raw == written + _PLACEHOLDER + third:
            return row
    found = list(members(raw))
    by_name = {member.name: member for member in found}
    index, embedding = by_name.get("index"), by_name.get("embedding")
    if index is None or embedding is None or embedding.start != vector:
        return None
    if len(by_name) != len(found):
        return None
    one, other = sorted((index, embedding), key=lambda member: member.start)
    return Row(raw[: one.start], raw[one.end : other.start], raw[other.end :], one is index)


def _spelled(raw: bytes, member: Member) -> bytes:
    return orjson.dumps(member.name) + b":" + raw[member.start : member.end]
