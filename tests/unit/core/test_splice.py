"""B61: what must differ in a request differs, and no other byte."""

import orjson
import pytest

from proxy.core.splice import add_missing, members, set_members, with_usage_requested


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'{"model":"a"}', b'{"model":"new"}'),
        (b'{"model" :\t"a" , "n":1}', b'{"model" :\t"new" , "n":1}'),
        (b' {\n  "n": 1.0,\n  "model": null\n}\n', b' {\n  "n": 1.0,\n  "model": "new"\n}\n'),
        (b'{"\\u006dodel":"a"}', b'{"\\u006dodel":"new"}'),
        (b'{"model":"a","model":{"b":[1]}}', b'{"model":"new","model":"new"}'),
        (b'{"a":{"model":"x"},"model":"y"}', b'{"a":{"model":"x"},"model":"new"}'),
        (b'{"a":["model",{"model":1}],"model":-1e5}', b'{"a":["model",{"model":1}],"model":"new"}'),
        (b'{"a":"model","model":true}', b'{"a":"model","model":"new"}'),
        (
            b'{"a":"}{\\"model\\":1,\\\\","model":"x"}',
            b'{"a":"}{\\"model\\":1,\\\\","model":"new"}',
        ),
        (b'{"model":"a\\\\"}', b'{"model":"new"}'),
        (b'{"model":[[],{}],"n":1}', b'{"model":"new","n":1}'),
        (b'{"model":12}', b'{"model":"new"}'),
        (b"{}", b'{"model":"new"}'),
        (b" { } ", b' {"model":"new" } '),
        (b'{"n":1}', b'{"model":"new","n":1}'),
        (b'{ "models":"a"}', b'{"model":"new", "models":"a"}'),
    ],
)
def test_B61_one_member_is_set_and_every_other_byte_stays(raw: bytes, told: bytes) -> None:
    assert set_members(raw, {"model": "new"}) == told
    orjson.loads(told)


def test_several_members_of_any_value() -> None:
    raw = set_members(b'{"a":1,"c":2}', {"a": {"b": [None, True, 1.5]}, "big": 2**80, "ü": "x"})
    assert (
        raw == '{"big":1208925819614629174706176,"ü":"x","a":{"b":[null,true,1.5]},"c":2}'.encode()
    )


def test_nothing_to_set_gives_the_very_bytes() -> None:
    raw = b'{"a":1}'
    assert set_members(raw, {}) == raw
    assert add_missing(raw, {}) is raw
    assert add_missing(raw, {"a": 2}) is raw


def test_only_what_is_missing_is_added() -> None:
    raw = b'{"a":null,"\\u0062":1}'
    assert (
        add_missing(raw, {"a": 1, "b": 2, "c": 3, "d": 4}) == b'{"c":3,"d":4,"a":null,"\\u0062":1}'
    )


def test_the_members_and_their_places() -> None:
    raw = b'{"a": [1] , "\\u0061":"x" }'
    assert [(name, raw[start:end]) for name, start, end in members(raw)] == [
        ("a", b"[1]"),
        ("a", b'"x"'),
    ]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'{"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (b'{"stream_options": null}', b'{"stream_options": {"include_usage":true}}'),
        (b'{"stream_options": { }}', b'{"stream_options": {"include_usage":true }}'),
        (
            b'{"stream_options": {"include_obfuscation" : false}}',
            b'{"stream_options": {"include_usage":true,"include_obfuscation" : false}}',
        ),
        (
            b'{"stream_options":{"include_usage":false , "x":12345678901234567890123}}',
            b'{"stream_options":{"include_usage":true , "x":12345678901234567890123}}',
        ),
        (
            b'{"stream_options":{"include_usage": true}}',
            b'{"stream_options":{"include_usage": true}}',
        ),
        (b'{"stream_options":"yes"}', b'{"stream_options":"yes"}'),
        (
            b'{"stream_options":[{}],"stream_options":{}}',
            b'{"stream_options":[{}],"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"a":{"stream_options":{}},"stream_options":{}}',
            b'{"a":{"stream_options":{}},"stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_B24_usage_is_asked_for_within_the_clients_own_options(raw: bytes, told: bytes) -> None:
    assert with_usage_requested(raw, orjson.loads(raw)) == told


def test_a_long_string_is_no_burden() -> None:
    raw = (
        b'{"image":"' + b"A" * 20_000_000 + b'","escapes":"' + b'\\"' * 500_000 + b'","model":"a"}'
    )
    assert set_members(raw, {"model": "b"}).endswith(b',"model":"b"}')
