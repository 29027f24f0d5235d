"""Reading bodies exactly and writing canonical JSON."""

import sys

import pytest

from proxy.core.canonical import MAX_DEPTH, canonical_json, parse_body
from proxy.core.request import Flaw
from proxy.core.wire import JsonValue
from proxy.errors import MalformedBody

DEEP = b"[" * 100_000


def nested(levels: int, inside: bytes = b"") -> bytes:
    """An object of `levels` levels, itself included."""
    return b'{"a":' + b"[" * (levels - 1) + inside + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "unexpected end"),
        (b'{"a":1,}', "trailing comma"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":Infinity}', "not valid JSON"),
        (b'{"a":-Infinity}', "not valid JSON"),
        (b'{"a":1e999,"b":NaN}', "NaN is not a JSON value"),
        (b'{"a":01}', "not valid JSON"),
        (b'{"a":.5}', "not valid JSON"),
        (b'{"a":"\x01"}', "not valid JSON"),
        (b'{"a":"\\ud800","b":"\x01"}', "not valid JSON"),
        (b'{"a":1}x', "not valid JSON"),
        (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8 at byte 6"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b'\xef\xbb\xbf{"a":1}', "byte order mark"),
        (b"[1]", "must be a JSON object, not an array"),
        (b'"a"', "not a string"),
        (b"1", "not a number"),
        (b"1.5", "not a number"),
        (b"1" * 1000, "not a number"),
        (b"true", "not a boolean"),
        (b"null", "not null"),
        (nested(MAX_DEPTH + 1), "too deep"),
        (nested(MAX_DEPTH + 1, b"1e999"), "too deep"),
        (nested(1025), "too deep"),
        (nested(1025, b"1e999"), "too deep"),
        (DEEP, "too deep"),
        (b'{"a":1e999,"b":' + DEEP, "too deep"),
        (b'{"a":' * 100_000, "too deep"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else repr(value[:24]),
)
def test_B73_a_malformed_body_is_refused_in_words(raw: bytes, why: str) -> None:
    with pytest.raises(MalformedBody) as caught:
        parse_body(raw)
    assert why in caught.value.message
    assert caught.value.error_code == "invalid_json"
    assert caught.value.status == 400


def test_B73_the_message_does_not_repeat_the_body() -> None:
    with pytest.raises(MalformedBody) as caught:
        parse_body(b'{"key":"sk-secret" "x"}')
    assert "sk-secret" not in caught.value.message


def test_the_deepest_body_that_is_taken_has_a_canonical_form() -> None:
    body = parse_body(nested(MAX_DEPTH))
    assert canonical_json(body.fields) == nested(MAX_DEPTH)


@pytest.mark.parametrize(
    ("raw", "flaw"),
    [
        (b'{"a":1,"a":1}', Flaw.DUPLICATE_MEMBER),
        (b'{"a":1,"\\u0061":2}', Flaw.DUPLICATE_MEMBER),
        (b'{"x":[{"y":{"a":1,"b":2,"a":3}}]}', Flaw.DUPLICATE_MEMBER),
        (b'{"a":"\\u003a","a":"b"}', Flaw.DUPLICATE_MEMBER),
        (b'{"a":"\\u003A:","b\\u003a":{"c":1,"c":2}}', Flaw.DUPLICATE_MEMBER),
        (b'{"a":"\\ud800"}', Flaw.LONE_SURROGATE),
        (b'{"a":["\\uDFFF"]}', Flaw.LONE_SURROGATE),
        (b'{"\\udc00":1}', Flaw.LONE_SURROGATE),
        (b'{"a":1e309}', Flaw.NUMBER_RANGE),
        (b'{"a":[-1.5E+400]}', Flaw.NUMBER_RANGE),
        (b'{"a":1' + b"0" * 308 + b".5e9}", Flaw.NUMBER_RANGE),
        (b'{"a":1' + b"0" * 309 + b".5}", Flaw.NUMBER_RANGE),
        (b'{"a":1e309,"b":"\\ud800","b":1}', Flaw.DUPLICATE_MEMBER),
    ],
    ids=repr,
)
def test_B18_what_parsers_read_differently_is_flawed(raw: bytes, flaw: Flaw) -> None:
    assert parse_body(raw).flaw is flaw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":":","b:c":"::"}',
        b'{"a\\u003ab":"\\u003A"}',
        b'{"a":"\\\\u003a"}',
        b'{"a":"\\ud83d\\ude00"}',
        b'{"a":1e308,"b":-1e308}',
        b'{"a":{"x":1},"b":{"x":1}}',
    ],
)
def test_B18_what_only_looks_flawed_is_not(raw: bytes) -> None:
    assert parse_body(raw).flaw is None


def test_B18_a_flawed_body_still_gives_its_fields() -> None:
    body = parse_body(b'{"model":"m","temperature":1e999,"x":1,"x":2}')
    assert body.fields["model"] == "m"
    assert body.fields["temperature"] == float("inf")


@pytest.mark.parametrize("length", [19, 20, 21, 309, 640, 641, 5_000, 100_000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_B18_integers_of_any_length_are_exact(length: int, sign: str) -> None:
    digits = sign + "9" * (length - 1) + "7"
    body = parse_body(b'{"a":%s,"b":[%s]}' % (digits.encode(), digits.encode()))
    assert body.flaw is None
    assert canonical_json(body.fields) == f'{{"a":{digits},"b":[{digits}]}}'.encode()


def test_B18_the_length_of_integers_does_not_hang_on_the_interpreters_limit() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        digits = b"9" * 2_000
        body = parse_body(b'{"a":' + digits + b',"b":1e20,"c":1e300}')
        assert canonical_json(body.fields).startswith(b'{"a":' + digits + b',"b":1')
    finally:
        sys.set_int_max_str_digits(before)


def test_B18_a_small_body_does_not_become_a_vast_one() -> None:
    assert parse_body(b'{"a":[' + b"1e308," * 200 + b"0]}").flaw is None
    assert parse_body(b'{"a":[' + b"1.5," * 20_000 + b"0]}").flaw is None
    assert parse_body(b'{"a":[' + b"1e308," * 220 + b"0]}").flaw is Flaw.NUMBER_RANGE


def test_B18_a_long_integer_equals_only_itself() -> None:
    one, same, other = (
        parse_body(b'{"a":%s}' % digits).fields["a"]
        for digits in (b"7" * 700, b"7" * 700, b"7" * 699 + b"8")
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


@pytest.mark.parametrize(
    ("token", "written"),
    [
        ("1.0", "1"),
        ("-0.0", "0"),
        ("-1.50", "-1.5"),
        ("1e15", "1000000000000000"),
        ("9007199254740993.0", "9007199254740993"),
        ("9007199254740992.5", "9007199254740992"),
        ("1e16", "10000000000000000"),
        ("1e21", "1" + "0" * 21),
        ("-12.5e22", "-125" + "0" * 21),
        ("0.00000000000000000001e40", "1" + "0" * 20),
        ("1e" + "0" * 5000 + "20", "1" + "0" * 20),
        ("1" + "0" * 5000 + "e-4980", "1" + "0" * 20),
        ("0.00001", "0.00001"),
        ("0.000009", "0.000009"),
        ("-1.25e-6", "-0.00000125"),
        ("1e-6", "0.000001"),
        ("9.99e-7", "9.99e-7"),
        ("1e-7", "1e-7"),
        ("-1e-400", "0"),
    ],
    ids=lambda text: text[:24],
)
def test_B2_numbers_have_one_spelling(token: str, written: str) -> None:
    body = parse_body(f'{{"a":[{token}]}}'.encode())
    assert canonical_json(body.fields) == f'{{"a":[{written}]}}'.encode()


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**63) - 1, [10**30, 1.0, {"b": 2.5e-6, "c": 3, "a": 1e22}], {"a": 2**70}],
)
def test_B2_values_that_no_parser_made_are_written_like_parsed_ones(value: JsonValue) -> None:
    written = canonical_json(value)
    assert canonical_json(parse_body(b'{"a":' + written + b"}").fields["a"]) == written


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, [2**70, "\ud800"]])
def test_B18_what_is_not_unicode_has_no_canonical_form(value: JsonValue) -> None:
    with pytest.raises(ValueError, match="no canonical JSON"):
        canonical_json(value)


def test_writing_never_changes_the_value() -> None:
    value: JsonValue = {"b": [1.0, 2**70], "a": {"c": 2e-6}}
    canonical_json(value)
    assert repr(value) == f"{{'b': [1.0, {2**70}], 'a': {{'c': 2e-06}}}}"
