"""The entry codec: round trips, frozen bytes, and what is refused (B51)."""

import contextlib
import dataclasses
import json
import random
import struct
import zlib
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core import codec
from proxy.core.codec import COMPRESS_ABOVE_BYTES, decode, encode, peek_expiry
from proxy.core.entry import Entry, Form, Usage
from proxy.errors import EntryUnreadable

VECTORS = Path(__file__).parents[2] / "vectors" / "entries"

ENTRY = Entry(
    key="magic_proxy:cache:1:chat:-:" + "ab" * 32,
    model="openai_gpt4_main",
    rule="chat",
    stored_at=1_800_000_000.25,
    fresh_until=1_800_000_600.25,
    expires_at=1_800_000_900.5,
    form=Form.JSON,
    status=200,
    headers=((b"content-type", b"application/json"), (b"x-note", b"caf\xe9")),
    usage=Usage(9, 12, 21),
    payload=b'{"choices": [{"finish_reason": "stop"}]}' * 100,
    profile="azure-eu",
    fallback=True,
    tags=("team:a", "é"),
)


def changed(entry: Entry, **members: object) -> Entry:
    return dataclasses.replace(entry, **members)  # type: ignore[arg-type]  # a test's short form


def sealed(value: bytes) -> bytes:
    """`value`, whose checksum was broken on purpose, with a right one."""
    return value[:-4] + struct.pack(">I", zlib.crc32(value[:-4]))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
times = st.floats(min_value=0, max_value=1e11)
latin = st.binary(max_size=20)
entries = st.builds(
    Entry,
    key=texts,
    model=texts,
    rule=texts,
    stored_at=times,
    fresh_until=times,
    expires_at=times,
    form=st.sampled_from(Form),
    status=st.integers(100, 599),
    headers=st.lists(st.tuples(latin, latin), max_size=4).map(tuple),
    usage=st.none() | st.builds(Usage, *(st.integers(0, 2**53) for _ in range(3))),
    payload=st.binary(max_size=300) | st.binary(max_size=30).map(lambda part: part * 200),
    profile=texts,
    fallback=st.booleans(),
    tags=st.lists(texts, max_size=3).map(tuple),
)


@given(entries, st.integers(0, 5_000))
def test_what_was_encoded_is_decoded(entry: Entry, compress_above_bytes: int) -> None:
    value = encode(entry, compress_above_bytes=compress_above_bytes)
    assert decode(value, entry.key) == entry
    assert peek_expiry(value) == entry.expires_at


def test_a_payload_above_the_threshold_is_compressed() -> None:
    small = encode(ENTRY, compress_above_bytes=100)
    large = encode(ENTRY, compress_above_bytes=len(ENTRY.payload))
    assert len(small) < len(ENTRY.payload) < len(large)
    assert decode(small, ENTRY.key) == decode(large, ENTRY.key) == ENTRY


def test_a_payload_that_does_not_shrink_stays_as_it_is() -> None:
    noise = changed(ENTRY, payload=random.Random(1).randbytes(5_000))
    plain = encode(noise, compress_above_bytes=10_000)
    assert encode(noise, compress_above_bytes=100) == plain


def test_the_default_threshold_is_the_measured_one() -> None:
    longer = changed(ENTRY, payload=b"a" * (COMPRESS_ABOVE_BYTES + 1))
    at_most = changed(ENTRY, payload=b"a" * COMPRESS_ABOVE_BYTES)
    assert len(encode(longer)) < COMPRESS_ABOVE_BYTES < len(encode(at_most))


@pytest.mark.parametrize("name", ["v1-plain", "v1-zstd", "v1-least"])
def test_B51_frozen_bytes_of_version_1_decode_for_ever(name: str) -> None:
    expected = json.loads((VECTORS / f"{name}.json").read_text())
    entry = decode((VECTORS / f"{name}.bin").read_bytes(), expected["key"])
    assert peek_expiry((VECTORS / f"{name}.bin").read_bytes()) == expected["expires_at"]
    got = dataclasses.asdict(entry)
    got["payload"] = entry.payload.decode()
    got["headers"] = [[n.decode("latin-1"), v.decode("latin-1")] for n, v in entry.headers]
    got["tags"] = list(entry.tags)
    unknown_then = {"tenant": "", "generation": 0, "took_seconds": 0.0}
    assert got == unknown_then | expected


def test_B51_an_entry_under_another_key_is_refused() -> None:
    with pytest.raises(EntryUnreadable, match="another key"):
        decode(encode(ENTRY), ENTRY.key + "0")


def test_B51_an_unknown_version_is_refused() -> None:
    value = encode(ENTRY)
    for version in (0, 2, 255):
        other = sealed(value[:4] + bytes([version]) + value[5:])
        with pytest.raises(EntryUnreadable, match="version"):
            decode(other, ENTRY.key)
        assert peek_expiry(other) is None


def test_B51_a_member_that_a_later_writer_added_is_passed_over() -> None:
    value = encode(ENTRY)
    header_bytes = int.from_bytes(value[8:12])
    header = orjson.loads(value[40 : 40 + header_bytes]) | {"later": [1, 2]}
    longer = orjson.dumps(header)
    changed_value = value[:8] + len(longer).to_bytes(4) + value[12:40] + longer
    assert decode(sealed(changed_value + value[40 + header_bytes :]), ENTRY.key) == ENTRY


@pytest.mark.parametrize("compress_above_bytes", [0, 10_000], ids=["zstd", "plain"])
def test_B51_every_cut_and_every_changed_byte_is_refused(compress_above_bytes: int) -> None:
    value = encode(changed(ENTRY, payload=b"ab" * 50), compress_above_bytes=compress_above_bytes)
    for place in range(len(value)):
        with pytest.raises(EntryUnreadable):
            decode(value[:place], ENTRY.key)
        for bit in (0x01, 0x80):
            flipped = value[:place] + bytes([value[place] ^ bit]) + value[place + 1 :]
            with pytest.raises(EntryUnreadable):
                decode(flipped, ENTRY.key)
    with pytest.raises(EntryUnreadable):
        decode(value + b"\0", ENTRY.key)


@given(st.binary(max_size=200))
@example(b"")
@example(b"MPXE")
@example(b"\x80\x05cposix\nsystem\n")
def test_B51_garbage_raises_the_declared_error_only(value: bytes) -> None:
    with pytest.raises(EntryUnreadable):
        decode(value, "key")
    peek_expiry(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
MEMBERS = ("key", "model", "rule", "form", "headers", "usage", "profile", "fallback", "tags")


@settings(max_examples=300)
@given(
    st.sampled_from(MEMBERS) | st.none(),
    json_values,
    st.integers(0, 255),
    st.integers(0, 2**32 - 1) | st.integers(0, 300),
    st.floats(),
)
def test_B51_a_well_sealed_forgery_raises_the_declared_error_only(
    member: str | None, forged: object, flags: int, payload_bytes: int, time: float
) -> None:
    header = orjson.loads(orjson.dumps(codec._header(ENTRY)))
    shape = header if member is None else header | {member: forged}
    packed = orjson.dumps(shape if member else forged)
    prefix = struct.pack(
        ">4sBBHIIddd", b"MPXE", 1, flags, 200, len(packed), payload_bytes, 1.0, 2.0, time
    )
    value = sealed(prefix + packed + zstandard.compress(b"a" * 99) + b"0000")
    with contextlib.suppress(EntryUnreadable):
        entry = decode(value, ENTRY.key)
        assert encode(entry, compress_above_bytes=2**30), "what is decoded is a sound entry"
        assert all(type(text) is str for text in (entry.model, entry.rule, entry.profile))
        assert len(entry.payload) == payload_bytes


@pytest.mark.parametrize("member", ["model", "rule", "profile", "tags", "usage", "headers"])
@pytest.mark.parametrize("forged", [7, [7], {"a": 1}, [[7, 7]], [True, True, True]])
def test_B51_a_member_of_a_wrong_type_is_refused(member: str, forged: object) -> None:
    packed = orjson.dumps(codec._header(ENTRY) | {member: forged})
    prefix = struct.pack(">4sBBHIIddd", b"MPXE", 1, 0, 200, len(packed), 5, 1.0, 2.0, 3.0)
    with pytest.raises(EntryUnreadable):
        decode(sealed(prefix + packed + b"hello" + b"0000"), ENTRY.key)


def test_B51_a_plain_payload_of_another_length_is_refused() -> None:
    packed = orjson.dumps(codec._header(ENTRY))
    prefix = struct.pack(">4sBBHIIddd", b"MPXE", 1, 0, 200, len(packed), 6, 1.0, 2.0, 3.0)
    with pytest.raises(EntryUnreadable, match="length"):
        decode(sealed(prefix + packed + b"hello" + b"0000"), ENTRY.key)


@pytest.mark.parametrize(
    ("claimed", "actual"),
    [(2**32 - 1, 2**27), (10, 2**27), (2**27, 2**27), (100, 200), (200, 100)],
    ids=["claims-4-GB", "claims-little", "claims-128-MB", "too-long", "too-short"],
)
def test_B51_a_decompression_bomb_is_refused(claimed: int, actual: int) -> None:
    packed = orjson.dumps(codec._header(ENTRY))
    prefix = struct.pack(">4sBBHIIddd", b"MPXE", 1, 1, 200, len(packed), claimed, 1.0, 2.0, 3.0)
    frame = zstandard.compress(b"\0" * actual)
    with pytest.raises(EntryUnreadable, match=r"too long|length"):
        decode(sealed(prefix + packed + frame + b"0000"), ENTRY.key)


def test_B51_a_frame_that_does_not_tell_its_length_is_refused() -> None:
    packed = orjson.dumps(codec._header(ENTRY))
    prefix = struct.pack(">4sBBHIIddd", b"MPXE", 1, 1, 200, len(packed), 100, 1.0, 2.0, 3.0)
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 100)
    with pytest.raises(EntryUnreadable):
        decode(sealed(prefix + packed + silent + b"0000"), ENTRY.key)


@pytest.mark.parametrize("time", [float("nan"), float("inf")])
@pytest.mark.parametrize("member", ["stored_at", "fresh_until", "expires_at"])
def test_a_time_that_is_not_finite_is_not_encoded(member: str, time: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        encode(changed(ENTRY, **{member: time}))


def test_a_text_that_is_not_unicode_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="no stored form"):
        encode(changed(ENTRY, model="\ud800"))


def test_a_payload_that_shrinks_by_less_than_a_third_stays_as_it_is() -> None:
    source = random.Random(2)
    for share, compressed in ((0.75, False), (0.5, True)):
        noise = source.randbytes(int(8000 * share))
        entry = changed(ENTRY, payload=noise + b"a" * (8000 - len(noise)))
        value = encode(entry)
        assert (len(value) < 8000) is compressed
        assert decode(value, entry.key) == entry
