"""B61: splicing is the edit of the dictionary, and leaves every other byte where it was."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.splice import add_missing, members, set_members, with_usage_requested

NAMES = st.sampled_from(
    ["model", "stream_options", "include_usage", 'a"b', "{", "\\", "ü", "", "n"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
).filter(lambda value: value not in (float("inf"), float("-inf")))
OBJECTS = st.dictionaries(NAMES, JSON, max_size=5)


@st.composite
def spelled(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """An object, and one of the many spellings of it."""
    fields = draw(OBJECTS.filter(lambda value: "Infinity" not in json.dumps(value)))
    text = json.dumps(
        fields,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 3])),
        separators=draw(st.sampled_from([(",", ":"), (" ,\t", " : "), (", ", ": ")])),
    )
    if draw(st.booleans()):
        text = text.replace('"model"', '"mod\\u0065l"')
    around = draw(st.sampled_from(["", " ", "\r\n\t"]))
    return (around + text + around).encode(), fields


EDITS = st.dictionaries(NAMES, st.text(max_size=5) | st.integers() | st.lists(st.booleans()))


@given(spelled(), EDITS)
def test_B61_setting_is_the_edit_of_the_dictionary(
    example: tuple[bytes, dict[str, Any]], edits: dict[str, Any]
) -> None:
    raw, fields = example
    told = set_members(raw, edits)
    assert json.loads(told) == {**fields, **edits}
    kept = [raw[start:end] for name, start, end in members(raw) if name not in edits]
    assert [told[start:end] for name, start, end in members(told) if name not in edits] == kept


@given(spelled(), EDITS)
def test_B61_the_bytes_around_the_values_stay(
    example: tuple[bytes, dict[str, Any]], edits: dict[str, Any]
) -> None:
    raw, fields = example
    there = {name: value for name, value in edits.items() if name in fields}
    told = set_members(raw, there)
    assert _around(told, there) == _around(raw, there)


def _around(raw: bytes, names: dict[str, Any]) -> list[bytes]:
    pieces, place = [], 0
    for name, start, end in members(raw):
        if name in names:
            pieces.append(raw[place:start])
            place = end
    return [*pieces, raw[place:]]


@given(spelled(), EDITS)
def test_B61_adding_takes_nothing_away(
    example: tuple[bytes, dict[str, Any]], edits: dict[str, Any]
) -> None:
    raw, fields = example
    told = add_missing(raw, edits)
    assert json.loads(told) == {**edits, **fields}
    rest = raw.strip()[1:]
    assert told.endswith(raw[raw.index(b"{") + 1 :])
    assert rest in told


@given(spelled())
def test_B24_asking_for_usage_is_the_edit_of_the_dictionary(
    example: tuple[bytes, dict[str, Any]],
) -> None:
    raw, fields = example
    told = json.loads(with_usage_requested(raw, fields))
    options = fields.get("stream_options")
    if options is None or isinstance(options, dict):
        fields = {**fields, "stream_options": {**(options or {}), "include_usage": True}}
    assert told == fields
