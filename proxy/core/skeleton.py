"""Reading an answer with embeddings by its skeleton: the same with `0` for each vector.

A skeleton is small, whatever the vectors' size, and all of the answer that is parsed. Its parts are
kept as raw bytes, so that nothing is spelled anew.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import orjson

from proxy.core.recording import NotStored
from proxy.core.shares import Counts, counts_in
from proxy.core.splice import Member, elements, members

_VECTOR: Final = re.compile(rb'"embedding"[ \t\r\n]*:[ \t\r\n]*(?=(["\[]))')
_CLOSING: Final = {b'"': b'"', b"[": b"]"}
_PLACEHOLDER: Final = b"0"


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


class Skeleton(NamedTuple):
    """Rows as they come, each with the number of its vector; `order` has the row of each index."""

    rows: Sequence[Row]
    numbers: Sequence[int]
    envelope: Envelope
    counts: Counts | None
    order: Sequence[int]


def first_vector(answer: bytes) -> tuple[int, int] | None:
    """Where the first vector stands, or what looks like one."""
    match = _VECTOR.search(answer)
    if match is None:
        return None
    start = match.end()
    return start, answer.find(_CLOSING[match[1]], start + 1) + 1


def without_vectors(
    body: bytes, only: frozenset[int] | None = None
) -> tuple[bytes, dict[int, bytes]]:
    """The skeleton's bytes, and the vectors by their places in it; `only` those numbers."""
    parts: list[bytes] = []
    vectors: dict[int, bytes] = {}
    place = offset = number = 0
    while (match := _VECTOR.search(body, place)) is not None:
        start = match.end()
        end = body.find(_CLOSING[match[1]], start + 1) + 1 or len(body)
        if only is None or number in only:
            offset += start - place
            vectors[offset] = body[start:end]
            offset += len(_PLACEHOLDER)
            parts += (body[place:start], _PLACEHOLDER)
        else:
            offset += end - place
            parts.append(body[place:end])
        place = end
        number += 1
    return b"".join((*parts, body[place:])), vectors


def read_around(before: bytes, after: bytes) -> Skeleton | NotStored:
    """The skeleton of an answer to one input, from what stands around its vector."""
    return read_skeleton(before + _PLACEHOLDER + after, [len(before)], count=1)


def read_skeleton(skeleton: bytes, vectors: Iterable[int], count: int) -> Skeleton | NotStored:
    """An answer to `count` inputs, or why it is none; `vectors` are their places, ascending."""
    try:
        answer = orjson.loads(skeleton)
    except orjson.JSONDecodeError:
        return NotStored.UNPARSABLE
    indices = _indices(answer, count)
    if isinstance(indices, NotStored):
        return indices
    top = list(members(skeleton))
    if len(top) != len(answer):
        return NotStored.UNPARSABLE
    (data,) = [member for member in top if member.name == "data"]
    numbers = {place: number for number, place in enumerate(vectors)}
    taken = _rows(skeleton, data.start, numbers, indices)
    if taken is None:
        return NotStored.UNPARSABLE
    return Skeleton(
        rows=[row for row, _ in taken],
        numbers=[number for _, number in taken],
        envelope=_envelope(skeleton, top, data),
        counts=counts_in(answer.get("usage")),
        order=sorted(range(count), key=indices.__getitem__),
    )


def _indices(answer: object, count: int) -> list[int] | NotStored:
    """The index of each row: all below `count`, and each once."""
    if not isinstance(answer, dict):
        return NotStored.UNPARSABLE
    if answer.get("error") is not None:
        return NotStored.ERROR_BODY
    rows = answer.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return NotStored.UNPARSABLE
    indices = [row.get("index") for row in rows]
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(count)):
        return NotStored.ITEM_COUNT
    return indices


def _envelope(skeleton: bytes, top: Sequence[Member], data: Member) -> Envelope:
    outside = [member for member in top if member.name not in {"data", "usage"}]
    before = [_spelled(skeleton, member) for member in outside if member.start < data.start]
    after = [_spelled(skeleton, member) for member in outside if member.start > data.start]
    head = b"{" + b",".join([*before, b'"data":'])
    return Envelope(head, b"".join([b"," + member for member in after]))


def _rows(
    skeleton: bytes, data: int, vectors: Mapping[int, int], indices: Sequence[int]
) -> list[tuple[Row, int]] | None:
    """The elements of `data`, each with its vector's number; None if one has no vector."""
    rows: list[tuple[Row, int]] = []
    like: Row | None = None
    for (start, end), index in zip(elements(skeleton, data), indices, strict=True):
        found = _row_like(like, skeleton[start:end], index) or _row(skeleton[start:end])
        if found is None or (number := vectors.get(start + found[1])) is None:
            return None
        like = found[0]
        rows.append((like, number))
    return rows


def _row_like(like: Row | None, raw: bytes, index: int) -> tuple[Row, int] | None:
    """A row spelled like the one before, as nearly all are, and where its vector stands."""
    if like is None or not like.index_first:
        return None
    written = like.first + b"%d" % index + like.second
    return (like, len(written)) if raw == written + _PLACEHOLDER + like.third else None


def _row(raw: bytes) -> tuple[Row, int] | None:
    """Any row, and where its vector stands; None without an index, or with a member twice."""
    found = list(members(raw))
    by_name = {member.name: member for member in found}
    index, embedding = by_name.get("index"), by_name.get("embedding")
    if index is None or embedding is None or len(by_name) != len(found):
        return None
    one, other = sorted((index, embedding), key=lambda member: member.start)
    row = Row(raw[: one.start], raw[one.end : other.start], raw[other.end :], one is index)
    return row, embedding.start


def _spelled(raw: bytes, member: Member) -> bytes:
    return orjson.dumps(member.name) + b":" + raw[member.start : member.end]
