"""Entries compressed with a dictionary: what they take, what they need, and what is refused."""

import contextlib
import dataclasses
import json
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.codec import decode, decode_meta, encode, encode_header, meta_bytes, peek_expiry
from proxy.core.dictionaries import LARGEST_PAYLOAD_BYTES, Dictionary, decode_dictionary
from proxy.core.entry import Entry, Form, Usage
from proxy.errors import DictionaryMissing, EntryUnreadable
from tests.dictionaries import a_dictionary, chat_entry, trained_on

VECTORS = Path(__file__).parents[2] / "vectors" / "dictionaries"
DICTIONARY = a_dictionary()
LOADED = {DICTIONARY.id: DICTIONARY}
ENTRY = chat_entry(1)
VALUE = encode(ENTRY, dictionary=DICTIONARY)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
entries = st.builds(
    Entry,
    key=texts,
    model=texts,
    rule=texts,
    stored_at=st.floats(0, 1e11),
    fresh_until=st.floats(0, 1e11),
    expires_at=st.floats(0, 1e11),
    form=st.sampled_from(Form),
    status=st.integers(100, 599),
    headers=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=4).map(
        tuple
    ),
    usage=st.none() | st.builds(Usage, *(st.integers(0, 2**53) for _ in range(3))),
    payload=st.binary(max_size=300) | st.binary(max_size=30).map(lambda part: part * 200),
    tags=st.lists(texts, max_size=3).map(tuple),
)


def sealed(value: bytes) -> bytes:
    """`value` with a right checksum."""
    return value[:-4] + struct.pack(">I", zlib.crc32(value[:-4]))


def forged(flags: int, header: bytes, payload: bytes, payload_bytes: int) -> bytes:
    """A well-sealed value with these parts."""
    prefix = struct.pack(
        ">4sBBHIIddd", b"MPXE", 1, flags, 200, len(header), payload_bytes, 1.0, 2.0, 3.0
    )
    return sealed(prefix + header + payload + b"0000")


def framed(content: bytes, dictionary: Dictionary | None = DICTIONARY) -> bytes:
    """A frame as the codec makes them."""
    data = None if dictionary is None else zstandard.ZstdCompressionDict(dictionary.content)
    return zstandard.ZstdCompressor(dict_data=data).compress(content)


@given(entries, st.integers(0, 5_000))
def test_what_was_encoded_with_a_dictionary_is_decoded_with_it(entry: Entry, above: int) -> None:
    value = encode(entry, compress_above_bytes=above, dictionary=DICTIONARY)
    assert decode(value, entry.key, LOADED) == entry
    assert peek_expiry(value) == entry.expires_at


@pytest.mark.parametrize("form", Form)
def test_a_short_answer_takes_less_than_half_of_its_bytes(form: Form) -> None:
    entry = chat_entry(2, form=form)
    plain, small = encode(entry), encode(entry, dictionary=DICTIONARY)
    assert len(small) < len(plain) / 2
    assert b"openai_gpt4_main" in plain
    assert b"openai_gpt4_main" not in small, "the header is compressed too"


def test_a_payload_for_which_it_does_not_pay_is_compressed_without() -> None:
    entry = chat_entry(3, tokens=20_000)
    assert len(entry.payload) > LARGEST_PAYLOAD_BYTES
    assert encode(entry, dictionary=DICTIONARY) == encode(entry)


def test_a_payload_that_does_not_shrink_stays_as_it_is_under_a_small_header() -> None:
    noise = dataclasses.replace(ENTRY, payload=random.Random(1).randbytes(5_000))
    value = encode(noise, dictionary=DICTIONARY)
    assert noise.payload in value
    assert len(value) < len(encode(noise, compress_above_bytes=10_000)) - 200
    assert decode(value, noise.key, LOADED) == noise


def test_what_does_not_shrink_at_all_is_stored_as_without_a_dictionary() -> None:
    chance = random.Random(2)
    odd = "".join(map(chr, chance.sample(range(0x4E00, 0x9FFF), 2_000)))
    noise = dataclasses.replace(ENTRY, model=odd, headers=(), tags=(), payload=b"")
    strange = Dictionary(_strange_dictionary(), trained_at=0.0)
    value = encode(noise, dictionary=strange)
    assert decode(value, noise.key, {strange.id: strange}) == noise
    assert len(value) <= len(encode(noise))


def _strange_dictionary() -> bytes:
    chance = random.Random(3)
    samples: list[bytes | bytearray | memoryview] = [chance.randbytes(300) for _ in range(50)]
    return zstandard.train_dictionary(4_096, samples).as_bytes()


@pytest.mark.parametrize("name", ["v1-json", "v1-sse", "v1-noise"])
def test_B51_frozen_bytes_with_their_dictionary_decode_for_ever(name: str) -> None:
    expected = json.loads((VECTORS / f"{name}.json").read_text())
    found = decode_dictionary((VECTORS / "v1-dictionary.bin").read_bytes(), expected.pop("id"))
    assert found is not None
    dictionary, _ = found
    value = (VECTORS / f"{name}.bin").read_bytes()
    entry = decode(value, expected["key"], {dictionary.id: dictionary})
    got = dataclasses.asdict(entry)
    got["payload"] = entry.payload.decode("latin-1")
    got["headers"] = [[n.decode("latin-1"), v.decode("latin-1")] for n, v in entry.headers]
    got["tags"] = list(entry.tags)
    assert got == expected


def test_an_entry_whose_dictionary_is_not_at_hand_says_which_it_is() -> None:
    with pytest.raises(DictionaryMissing) as missing:
        decode(VALUE, ENTRY.key)
    assert missing.value.dictionary_id == DICTIONARY.id
    assert isinstance(missing.value, EntryUnreadable), "readers that know of none have a miss"


def test_B51_another_dictionary_under_the_same_id_is_found_out() -> None:
    other = Dictionary(DICTIONARY.content.replace(b"stop", b"spot"), trained_at=0.0)
    assert other.id == DICTIONARY.id
    assert b"stop" in ENTRY.payload
    with pytest.raises(EntryUnreadable, match="hecksum"):
        decode(VALUE, ENTRY.key, {other.id: other})


def test_B51_an_entry_under_another_key_is_refused() -> None:
    with pytest.raises(EntryUnreadable, match="another key"):
        decode(VALUE, ENTRY.key + "0", LOADED)


def test_B51_every_cut_and_every_changed_byte_is_refused_and_asks_for_nothing() -> None:
    for loaded in ({}, LOADED):
        for place in range(len(VALUE)):
            flipped = VALUE[:place] + bytes([VALUE[place] ^ 0x41]) + VALUE[place + 1 :]
            for wrong in (VALUE[:place], flipped):
                with pytest.raises(EntryUnreadable) as refused:
                    decode(wrong, ENTRY.key, loaded)
                assert not isinstance(refused.value, DictionaryMissing), "damage is found first"


@settings(max_examples=300)
@given(
    st.integers(0, 255),
    st.sampled_from(["frame", "plain", "foreign", "noise"]),
    st.sampled_from(["frame", "plain", "foreign", "noise"]),
    st.integers(0, 2**32 - 1) | st.just(len(ENTRY.payload)),
    st.binary(max_size=40),
    st.integers(0, 1_000),
)
@example(3, "frame", "frame", len(ENTRY.payload), b"", 0)
def test_B51_a_well_sealed_forgery_raises_the_declared_error_only(
    flags: int, header: str, payload: str, payload_bytes: int, noise: bytes, place: int
) -> None:
    def made(kind: str, content: bytes) -> bytes:
        match kind:
            case "frame":
                frame = framed(content)
                return frame[:place] + noise + frame[place + len(noise) :] if noise else frame
            case "plain":
                return content
            case "foreign":
                return framed(content, None)
        return noise

    value = forged(
        flags, made(header, encode_header(ENTRY)), made(payload, ENTRY.payload), payload_bytes
    )
    try:
        entry = decode(value, ENTRY.key, LOADED)
    except EntryUnreadable:
        return
    assert len(entry.payload) == payload_bytes
    assert flags in range(4)


@pytest.mark.parametrize("flag", [0x04, 0x08, 0x80])
def test_B51_a_flag_of_a_later_version_is_refused(flag: int) -> None:
    for value in (VALUE, encode(ENTRY)):
        with pytest.raises(EntryUnreadable, match="flag"):
            decode(sealed(value[:5] + bytes([value[5] | flag]) + value[6:]), ENTRY.key, LOADED)


@pytest.mark.parametrize("size", [2**20 + 1, 2**27])
def test_B51_a_header_that_would_inflate_beyond_all_measure_is_refused(size: int) -> None:
    header = framed(b"\0" * size)
    with pytest.raises(EntryUnreadable, match="too long"):
        decode(forged(2, header, b"", 0), ENTRY.key, LOADED)
    assert decode_meta(forged(2, header, b"", 0), ENTRY.key, LOADED) is None


@pytest.mark.parametrize(
    ("claimed", "actual"), [(10, 2**27), (2**27, 2**27), (100, 200), (200, 100)]
)
def test_B51_a_payload_that_would_is_refused_too(claimed: int, actual: int) -> None:
    header = framed(encode_header(ENTRY))
    with pytest.raises(EntryUnreadable, match=r"too long|length"):
        decode(forged(3, header, framed(b"\0" * actual), claimed), ENTRY.key, LOADED)


def test_B51_a_header_that_does_not_tell_its_length_is_refused() -> None:
    data = zstandard.ZstdCompressionDict(DICTIONARY.content)
    silent = zstandard.ZstdCompressor(dict_data=data, write_content_size=False)
    with pytest.raises(EntryUnreadable):
        decode(forged(2, silent.compress(encode_header(ENTRY)), b"", 0), ENTRY.key, LOADED)


def test_B51_a_header_frame_without_a_dictionary_is_refused() -> None:
    value = forged(2, framed(encode_header(ENTRY), None), ENTRY.payload, len(ENTRY.payload))
    with pytest.raises(EntryUnreadable, match="names no dictionary"):
        decode(value, ENTRY.key, LOADED)


def test_B51_a_payload_of_another_dictionary_than_the_header_is_refused() -> None:
    other = trained_on(range(100))
    header, payload = framed(encode_header(ENTRY)), framed(ENTRY.payload, other)
    value = forged(3, header, payload, len(ENTRY.payload))
    with pytest.raises(EntryUnreadable):
        decode(value, ENTRY.key, LOADED | {other.id: other})


def test_B54_the_first_bytes_tell_what_a_purge_asks_with_the_dictionary() -> None:
    needed = meta_bytes(VALUE[:40])
    assert needed is not None
    meta = decode_meta(VALUE[:needed], ENTRY.key, LOADED)
    assert meta is not None
    assert (meta.key, meta.tags, meta.stored_at) == (ENTRY.key, ENTRY.tags, ENTRY.stored_at)
    assert decode_meta(VALUE[: needed - 1], ENTRY.key, LOADED) is None
    assert decode_meta(VALUE, ENTRY.key + "0", LOADED) is None
    with pytest.raises(DictionaryMissing) as missing:
        decode_meta(VALUE[:needed], ENTRY.key)
    assert missing.value.dictionary_id == DICTIONARY.id


@given(st.binary(max_size=80).map(lambda rest: b"MPXE\x01\x03" + rest))
def test_B51_any_bytes_with_the_flags_tell_nothing(value: bytes) -> None:
    with contextlib.suppress(DictionaryMissing):
        assert decode_meta(value, "key", LOADED) is None


def test_one_dictionary_serves_several_threads() -> None:
    some = [chat_entry(number, form=form) for number in range(50) for form in Form]

    def there_and_back(entry: Entry) -> bool:
        return decode(encode(entry, dictionary=DICTIONARY), entry.key, LOADED) == entry

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(there_and_back, some * 4))
