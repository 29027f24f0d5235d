"""Keys hold still under every spelling of a request, and differ where requests do.

Invariants: whatever bytes come, `parse_body` gives a body or MalformedBody; equal values have equal
keys, different values different ones; our derivation and the independent one agree on every rule.
"""

import copy
import json
import os
import string
import subprocess
import sys
from decimal import Decimal
from typing import Any

import rfc8785
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.core.canonical import canonical_json, parse_body
from proxy.core.key import NoKey
from proxy.core.paths import FieldPath, replace_text
from proxy.core.request import Flaw
from proxy.errors import MalformedBody
from tests.vectors import independent
from tests.vectors.rules import derivation_of, derive_vector, rule_of

ROOT = str(independent.VECTORS.parents[2])
STAR = rule_of({"include_in_key": ["*"]})

characters = st.one_of(
    st.characters(codec="utf-8"), st.sampled_from(':"\\/\x00\x1f\x7f\u2028é\ue000😀')
)
texts = st.text(characters, max_size=8)
numbers = st.one_of(
    st.integers(-(10**30), 10**30),
    st.integers(-300, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(1e-8, 1e-4),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
bodies = st.dictionaries(
    texts.filter(lambda name: name != "internal_model_name"), values, min_size=1, max_size=4
)


class Spelling:
    """Writes a JSON value in one of its many spellings, all of the same meaning."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def value(self, value: Any) -> str:
        match value:
            case dict():
                order = self.draw(st.permutations(list(value)))
                return self.joined(
                    "{}",
                    [
                        self.text(name) + self.space() + ":" + self.value(value[name])
                        for name in order
                    ],
                )
            case list():
                return self.joined("[]", [self.value(element) for element in value])
            case str():
                return self.space() + self.text(value) + self.space()
            case bool() | None:
                return json.dumps(value)
            case _:
                return self.space() + self.number(value)

    def joined(self, brackets: str, parts: list[str]) -> str:
        return brackets[0] + self.space() + ",".join(parts) + self.space() + brackets[1]

    def space(self) -> str:
        return self.draw(st.sampled_from(["", "", " ", "\n", "\t\r "]))

    def text(self, text: str) -> str:
        return '"' + "".join(map(self.character, text)) + '"'

    def character(self, character: str) -> str:
        if self.draw(st.booleans()):
            units = character.encode("utf-16-be").hex()
            spelled = "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
            return spelled.upper().replace("\\U", "\\u") if self.draw(st.booleans()) else spelled
        if character == "/" and self.draw(st.booleans()):
            return "\\/"
        return json.dumps(character, ensure_ascii=False)[1:-1]

    def number(self, value: float) -> str:
        exact = Decimal(repr(value))
        sign, digits, exponent = exact.as_tuple()
        assert isinstance(exponent, int)
        text = "".join(map(str, digits))
        minus = "-" if sign else ""
        match self.draw(st.sampled_from(["plain", "exponent", "zeros", "point"])):
            case "exponent":
                mark = self.draw(st.sampled_from(["e", "E", "e+"] if exponent >= 0 else ["e", "E"]))
                return f"{minus}{text}{mark}{exponent}"
            case "zeros":
                # A zero with zeros behind it would lead with them, which is not JSON.
                return f"{minus}{text}00e{exponent - 2}" if value else f"{minus}0.00e{exponent}"
            case "point":
                return f"{minus}{text[0]}.{text[1:]}0e{exponent + len(text) - 1}"
            case _:
                return repr(value)


@st.composite
def spellings(draw: st.DrawFn, value: Any) -> bytes:
    return Spelling(draw).value(value).encode()


@given(st.data(), bodies)
def test_B2_every_spelling_of_a_body_has_one_key(data: st.DataObject, body: Any) -> None:
    plain = derivation_of(json.dumps(body).encode(), STAR)
    spelled = derivation_of(data.draw(spellings(body)), STAR)
    assert spelled.canonical == plain.canonical
    assert spelled.key == plain.key


@given(st.data(), bodies)
def test_B2_every_spelling_is_written_as_the_independent_writer_does(
    data: st.DataObject, body: Any
) -> None:
    raw = data.draw(spellings(body))
    parsed = parse_body(raw)
    assert parsed.flaw is None
    assert canonical_json(parsed.fields).decode() == independent.write(
        independent.parse(raw.decode())
    )


@given(bodies, bodies)
def test_B2_different_bodies_have_different_keys(one: Any, other: Any) -> None:
    written = [independent.write(independent.parse(json.dumps(body))) for body in (one, other)]
    keys = [derivation_of(json.dumps(body).encode(), STAR).key for body in (one, other)]
    assume(None not in keys)
    assert (keys[0] == keys[1]) is (written[0] == written[1])


@given(st.data(), bodies)
def test_B2_one_changed_leaf_changes_the_key(data: st.DataObject, body: Any) -> None:
    name = data.draw(st.sampled_from(sorted(body)))
    assume(name not in {"model", "stream", "stream_options"})
    other = {**body, name: [body[name]]}
    keys = [derivation_of(json.dumps(each).encode(), STAR).key for each in (body, other)]
    assert keys[0] != keys[1]
    del other[name]
    assert derivation_of(json.dumps(other).encode(), STAR).key != keys[0]


@given(st.floats(-(2.0**53), 2.0**53, exclude_min=True, exclude_max=True))
def test_B2_numbers_within_exact_doubles_are_written_as_rfc_8785_does(value: float) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


@given(texts)
def test_B2_strings_are_written_as_rfc_8785_does(text: str) -> None:
    assert canonical_json(text) == rfc8785.dumps(text)


member_names = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"a:b"', '"a\\u003ab"', '":"'])
json_texts = st.recursive(
    st.sampled_from(["1", '":"', '"\\u003A:"', '"\\\\u003a"', "null", "1.0", '"\\ud83d\\ude00"']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]"),
        st.lists(st.tuples(member_names, inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
        ),
    ),
    max_leaves=10,
).map(lambda text: f'{{"x":{text}}}')


@given(json_texts)
def test_B18_duplicates_are_found_exactly_where_the_standard_library_finds_them(text: str) -> None:
    found: list[bool] = []

    def members(pairs: list[tuple[str, Any]]) -> None:
        found.append(len(dict(pairs)) != len(pairs))

    json.loads(text, object_pairs_hook=members)
    flaw = parse_body(text.encode()).flaw
    assert (flaw is Flaw.DUPLICATE_MEMBER) is any(found)


fragments = st.lists(
    st.sampled_from(
        [
            *'{}[],:"\\ -+.eE0123456789',
            '"a"',
            '{"a":',
            "1",
            "1e999",
            '"\\ud800"',
            "NaN",
            "true",
            "\x00",
            "\ufeff",
            "9" * 400,
        ]
    ),
    max_size=12,
).map("".join)


@given(
    st.one_of(
        st.binary(max_size=40),
        fragments.map(str.encode),
        fragments.map(lambda text: f'{{"a":{text}}}'.encode()),
    )
)
@settings(max_examples=200)
def test_B73_a_body_is_taken_where_the_standard_library_takes_an_object(raw: bytes) -> None:
    def refuse(token: str) -> None:
        raise ValueError(token)

    try:
        expected = isinstance(json.loads(raw.decode(), parse_constant=refuse), dict)
    except ValueError:
        expected = False
    try:
        body = parse_body(raw)
    except MalformedBody:
        assert not expected
    else:
        assert expected
        if body.flaw is None:
            canonical_json(body.fields)


steps = st.lists(st.sampled_from(["[*]", ".a", ".b", '."c.d"']), max_size=3).map("".join)
roots = st.sampled_from(["messages", "tools", "n", "stream", "model", "a"])
paths = st.one_of(st.builds(str.__add__, roots, steps), roots, st.just("*"))
small_values = st.recursive(
    st.sampled_from([None, 1, 2.5, "a", "ab", 1e22]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "c.d", "e"]), inner, max_size=3),
    ),
    max_leaves=8,
)
small_bodies = st.dictionaries(
    st.one_of(roots, st.sampled_from(["user", "encoding_format", "seed", "internal_model_name"])),
    small_values,
    max_size=5,
)
rules = st.fixed_dictionaries(
    {
        "model_names": st.sampled_from([["*"], ["m"], ["x", "m*"], ["x"]]),
        "include_in_key": st.lists(paths, min_size=1, max_size=4),
        "exclude_from_key": st.lists(paths.filter(lambda path: path != "*"), max_size=2),
        "unlisted_fields": st.sampled_from(["ignore", "guard", "bypass"]),
        "normalize": st.lists(
            st.fixed_dictionaries(
                {
                    "path": paths,
                    "pattern": st.just("a(b?)"),
                    "replacement": st.sampled_from(["", "\\1x"]),
                }
            ),
            max_size=2,
        ),
    }
)


@given(rules, small_bodies, st.sampled_from(["chat", "embeddings"]))
@settings(max_examples=300)
def test_B1_ours_and_the_independent_derivation_agree_on_any_rule(
    rule: dict[str, Any], body: Any, endpoint: str
) -> None:
    vector = {"rule": rule, "request": json.dumps(body), "endpoint": endpoint, "model": "m"}
    ours, theirs = derive_vector(vector), independent.expected(vector)
    assert ours.canonical.decode() == theirs.get("canonical", "")
    assert ours.reason == (NoKey(theirs["no_key"]) if "no_key" in theirs else None)
    assert ours.field == theirs.get("field")


@given(rules, small_bodies)
def test_B7_a_derivation_never_changes_the_request(rule: dict[str, Any], body: Any) -> None:
    raw = json.dumps(body).encode()
    derivation = derivation_of(raw, rule_of(rule))
    assert derivation.request.fields == parse_body(raw).fields


@given(small_values, paths)
def test_B7_a_replacement_never_changes_its_argument(value: Any, path: str) -> None:
    before = copy.deepcopy(value)
    replace_text(value, FieldPath.parse(path).steps, str.upper)
    assert value == before


@given(st.text(st.sampled_from([*'[]*."\\ ', *string.ascii_lowercase[:3]]), max_size=12))
def test_B5_a_path_is_read_or_refused(text: str) -> None:
    try:
        path = FieldPath.parse(text)
    except ValueError:
        return
    assert FieldPath.parse(path.text) == path


PRINT_KEYS = """
import json
from tests.vectors.independent import VECTORS
from tests.vectors.rules import derive_vector
for vector in json.loads(VECTORS.read_text("utf-8")):
    key = derive_vector(vector).key
    print(key and key.store_key(""))
"""


def test_B1_keys_are_the_same_in_every_process() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", PRINT_KEYS],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(printed) == 1
    assert printed.pop().count(b"v1:") > 60
