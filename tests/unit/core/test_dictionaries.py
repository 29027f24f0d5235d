"""What dictionaries are stored as, under which keys, and whose entries get one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.dictionaries import (
    LONGEST_DICTIONARY_BYTES,
    Dictionary,
    decode_dictionary,
    decode_pointer,
    dictionary_key,
    encode_dictionary,
    encode_pointer,
    family_of,
    peek_dictionary_expiry,
    pointer_key,
)
from proxy.core.key import CacheKey
from tests.dictionaries import PREFIX, STORED_AT, a_dictionary, chat_key

FROZEN = Path(__file__).parents[2] / "vectors" / "dictionaries" / "v1-dictionary.bin"
DIGEST = "ab" * 32
DICTIONARY = a_dictionary()
VALUE = encode_dictionary(DICTIONARY, 7.5)


def test_what_was_encoded_is_decoded() -> None:
    found = decode_dictionary(VALUE, DICTIONARY.id)
    assert found is not None
    dictionary, expires_at = found
    assert (dictionary.id, dictionary.content) == (DICTIONARY.id, DICTIONARY.content)
    assert (dictionary.trained_at, expires_at) == (STORED_AT, 7.5)
    assert peek_dictionary_expiry(VALUE) == 7.5


def test_B51_frozen_bytes_of_version_1_decode_for_ever() -> None:
    found = decode_dictionary(FROZEN.read_bytes(), 2_059_617_890)
    assert found is not None
    dictionary, expires_at = found
    assert (dictionary.trained_at, expires_at) == (STORED_AT, STORED_AT + 86_400.5)
    assert len(dictionary.content) == 8 * 1024


def test_a_dictionary_of_another_id_is_none() -> None:
    assert decode_dictionary(VALUE, DICTIONARY.id + 1) is None


def test_every_cut_and_every_changed_byte_makes_it_none() -> None:
    for place in [*range(200), *range(200, len(VALUE), 61), len(VALUE) - 1]:
        flipped = VALUE[:place] + bytes([VALUE[place] ^ 0x41]) + VALUE[place + 1 :]
        assert decode_dictionary(VALUE[:place], DICTIONARY.id) is None
        assert decode_dictionary(flipped, DICTIONARY.id) is None


@pytest.mark.parametrize("content", [b"", b"text" * 100, bytes(5_000)])
def test_what_zstd_takes_for_none_is_none(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a dictionary"):
        Dictionary(content, trained_at=0.0)


def test_one_that_is_too_long_was_not_made_here() -> None:
    longer = Dictionary(DICTIONARY.content + b"\0" * LONGEST_DICTIONARY_BYTES, trained_at=0.0)
    assert decode_dictionary(encode_dictionary(longer, 1.0), longer.id) is None


@pytest.mark.parametrize("time", [float("nan"), float("inf")])
def test_times_that_are_not_finite_make_it_none(time: float) -> None:
    assert decode_dictionary(encode_dictionary(DICTIONARY, time), DICTIONARY.id) is None
    timeless = Dictionary(DICTIONARY.content, trained_at=time)
    assert decode_dictionary(encode_dictionary(timeless, 1.0), DICTIONARY.id) is None


@given(st.binary(max_size=100) | st.binary(max_size=60).map(lambda rest: b"MPXD\x01" + rest))
def test_any_bytes_are_none(value: bytes) -> None:
    assert decode_dictionary(value, 1) is None
    peek_dictionary_expiry(value)


def test_a_pointer_names_an_id() -> None:
    assert decode_pointer(encode_pointer(DICTIONARY.id)) == DICTIONARY.id


@pytest.mark.parametrize("value", [None, b"", b"0", b"-1", b"x", b"12\n", b"1" * 11, VALUE])
def test_any_other_pointer_names_none(value: bytes | None) -> None:
    assert decode_pointer(value) is None


@pytest.mark.parametrize(
    ("store_key", "family"),
    [
        (chat_key(1), f"{PREFIX}dict:chat"),
        (f"{chat_key(1)}:2", f"{PREFIX}dict:chat"),
        (f"v12:chat:t-1:{DIGEST}", "dict:chat"),
        (f"v1:v1:chat:-:{DIGEST}", "v1:dict:chat"),
        (f"a\nb:v1:chat:-:{DIGEST}", "a\nb:dict:chat"),
        (f"{PREFIX}v1:embeddings:-:{DIGEST}", None),
        (f"{PREFIX}v1:images:-:{DIGEST}", None),
        (f"{PREFIX}v1:chat:-:{DIGEST[:-1]}", None),
        ("anything", None),
        ("", None),
    ],
)
def test_chat_entries_under_one_prefix_share_dictionaries(
    store_key: str, family: str | None
) -> None:
    assert family_of(store_key) == family


@pytest.mark.parametrize("key", [dictionary_key(f"{PREFIX}dict:chat", 7), pointer_key(PREFIX)])
def test_what_looks_for_entries_meets_no_dictionary(key: str) -> None:
    assert not key.startswith(f"{PREFIX}v1:")
    with pytest.raises(ValueError, match="not a store key"):
        CacheKey.parse(key, PREFIX)
