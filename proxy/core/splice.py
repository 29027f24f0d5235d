"""Changing top-level members of a JSON object in its bytes, and no other byte.

`raw` is known to be one valid JSON object in UTF-8: what goes upstream is what the client wrote,
with its own spelling of numbers, white space and order, but for the members that must differ.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import orjson

from proxy.core.wire import JsonValue

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_TOKEN = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_SCALAR = re.compile(rb"[^ \t\r\n,}\]]+")
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_ELEMENT = re.compile(rb"[^ \t\r\n,]")


class Member(NamedTuple):
    """A top-level member: its name, and where its value stands in the bytes."""

    name: str
    start: int
    end: int


def members(raw: bytes) -> Iterator[Member]:
    """The top-level members, in order, repeated names too."""
    place = raw.index(b"{") + 1
    while (token := _TOKEN.search(raw, place)) is not None and token[0] != b"}":
        colon = _COLON.match(raw, token.end())
        assert colon is not None
        start = colon.end()
        place = _value_end(raw, start)
        yield Member(_decoded(token[0]), start, place)


def elements(raw: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Where the elements of the array that begins at `start` stand, in order."""
    place = start + 1
    while (first := _ELEMENT.search(raw, place)) is not None and first[0] != b"]":
        place = _value_end(raw, first.start())
        yield first.start(), place


def set_members(raw: bytes, values: Mapping[str, JsonValue]) -> bytes:
    """Every top-level occurrence gets the new value; an absent member comes first."""
    encoded = {name: _encoded(value) for name, value in values.items()}
    found = [member for member in members(raw) if member.name in encoded]
    edits = [(member.start, member.end, encoded[member.name]) for member in found]
    present = {member.name for member in found}
    absent = {name: value for name, value in encoded.items() if name not in present}
    return _inserted(_edited(raw, edits), absent)


def add_missing(raw: bytes, values: Mapping[str, JsonValue]) -> bytes:
    """Members that are not there yet are added; a member that is there stays, also if null."""
    if not values:
        return raw
    present = {member.name for member in members(raw)}
    absent = {name: _encoded(value) for name, value in values.items() if name not in present}
    return _inserted(raw, absent)


def with_usage_requested(raw: bytes, fields: Mapping[str, JsonValue]) -> bytes:
    """The chat request with `stream_options.include_usage` true; `fields` is what `raw` says.

    Options that are no object are left for the upstream to refuse.
    """
    options = fields.get("stream_options")
    if options is None:
        return set_members(raw, {"stream_options": {"include_usage": True}})
    if not isinstance(options, dict) or options.get("include_usage") is True:
        return raw
    edits = [
        (start, end, set_members(raw[start:end], {"include_usage": True}))
        for name, start, end in members(raw)
        if name == "stream_options" and raw.startswith(b"{", start)
    ]
    return _edited(raw, edits)


def _value_end(raw: bytes, start: int) -> int:
    first = raw[start : start + 1]
    if first not in (b'"', b"{", b"["):
        scalar = _SCALAR.match(raw, start)
        assert scalar is not None
        return scalar.end()
    depth = 0
    for token in _TOKEN.finditer(raw, start):
        match raw[token.start() : token.start() + 1]:
            case b"{" | b"[":
                depth += 1
            case b"}" | b"]":
                depth -= 1
        if depth == 0:
            return token.end()
    raise ValueError("not a JSON object")


def _decoded(string: bytes) -> str:
    return str(orjson.loads(string)) if b"\\" in string else string[1:-1].decode()


def _encoded(value: JsonValue) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # Whole numbers beyond 64 bits.
        return json.dumps(value, separators=(",", ":")).encode()


def _edited(raw: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    pieces: list[bytes] = []
    place = 0
    for start, end, value in edits:
        pieces += (raw[place:start], value)
        place = end
    return b"".join((*pieces, raw[place:]))


def _inserted(raw: bytes, absent: Mapping[str, bytes]) -> bytes:
    if not absent:
        return raw
    place = raw.index(b"{") + 1
    new = b",".join(_encoded(name) + b":" + value for name, value in absent.items())
    rest = _NOT_SPACE.search(raw, place)
    comma = b"" if rest is None or rest[0] == b"}" else b","
    return raw[:place] + new + comma + raw[place:]
