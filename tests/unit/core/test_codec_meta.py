"""What the first bytes of a stored entry tell, without its payload."""

import struct
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.codec import decode, decode_meta, encode, meta_bytes
from proxy.core.entry import Entry, EntryMeta, Form

VECTORS = Path(__file__).parents[2] / "vectors" / "entries"
KEY = "magic_proxy:cache:v1:chat:shared:" + "ab" * 32
ENTRY = Entry(
    key=KEY,
    model="gpt-4o",
    rule="chat",
    stored_at=1_800_000_000.25,
    fresh_until=1_800_000_600.25,
    expires_at=1_800_000_900.5,
    form=Form.JSON,
    status=200,
    headers=((b"content-type", b"application/json"),),
    usage=None,
    payload=b"0123456789" * 1000,
    tags=("project:é", "user:1"),
    tenant="search",
    generation=1_800_000_000_123,
)
META = EntryMeta(
    key=KEY,
    model="gpt-4o",
    rule="chat",
    stored_at=1_800_000_000.25,
    tags=("project:é", "user:1"),
    tenant="search",
    generation=1_800_000_000_123,
)


def needed(value: bytes) -> int:
    count = meta_bytes(value[:40])
    assert count is not None
    return count


@pytest.mark.parametrize("compress_above_bytes", [0, 2**30], ids=["compressed", "plain"])
def test_B54_the_first_bytes_tell_what_a_purge_asks(compress_above_bytes: int) -> None:
    value = encode(ENTRY, compress_above_bytes=compress_above_bytes)
    assert decode_meta(value[: needed(value)], KEY) == META
    assert decode_meta(value, KEY) == META
    assert decode_meta(value[: needed(value) - 1], KEY) is None


@pytest.mark.parametrize("file", sorted(VECTORS.glob("*.bin")), ids=lambda path: path.stem)
def test_B54_entries_of_every_version_tell_the_same_as_when_they_are_read_whole(
    file: Path,
) -> None:
    value = file.read_bytes()
    key = orjson.loads(file.with_suffix(".json").read_bytes())["key"]
    entry, meta = decode(value, key), decode_meta(value[: needed(value)], key)
    assert meta is not None
    for name in ("key", "model", "rule", "stored_at", "tags", "tenant", "generation"):
        assert getattr(meta, name) == getattr(entry, name)


def test_B51_what_is_stored_under_another_key_tells_nothing() -> None:
    assert decode_meta(encode(ENTRY), KEY[:-1] + "c") is None


def test_B51_an_unknown_version_tells_nothing() -> None:
    value = encode(ENTRY)
    other = value[:4] + b"\xff" + value[5:]
    assert meta_bytes(other) is None
    assert decode_meta(other, KEY) is None


@pytest.mark.parametrize("member", ["model", "rule", "tags", "tenant", "generation"])
@pytest.mark.parametrize("forged", [None, {"a": 1}, [7], True])
def test_B51_a_member_of_a_wrong_type_tells_nothing(member: str, forged: object) -> None:
    value = encode(ENTRY)
    header = orjson.loads(value[40 : needed(value)])
    packed = orjson.dumps(header | {member: forged})
    assert (
        decode_meta(value[:8] + struct.pack(">I", len(packed)) + value[12:40] + packed, KEY) is None
    )


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda rest: b"MPXE\x01" + rest))
def test_B51_any_bytes_tell_nothing_and_raise_nothing(value: bytes) -> None:
    meta_bytes(value)
    assert decode_meta(value, KEY) is None
