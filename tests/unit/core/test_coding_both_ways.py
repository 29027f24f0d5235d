"""Content codings: reading what upstreams send, and choosing what a client takes."""

import gzip
import zlib

import pytest
import zstandard

from proxy.core.coding import (
    UnreadableCoding,
    decoder,
    gzipped,
    readable_accept_encoding,
    wants_gzip,
)

PLAIN = b'{"a": "' + b"x" * 500 + b'"}'
CODED = [
    ("gzip", gzip.compress(PLAIN)),
    ("X-GZIP", gzip.compress(PLAIN)),
    ("deflate", zlib.compress(PLAIN)),
    ("zstd", zstandard.compress(PLAIN)),
    ("identity", PLAIN),
    (" ", PLAIN),
    (None, PLAIN),
]


# Named by the coding alone: a gzip member holds the time of its making.
@pytest.mark.parametrize(("coding", "coded"), CODED, ids=[str(coding) for coding, _ in CODED])
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_B19_a_known_coding_is_read_in_any_split(
    coding: str | None, coded: bytes, size: int
) -> None:
    read = decoder(coding)

    assert b"".join(read.feed(coded[at : at + size]) for at in range(0, len(coded), size)) == PLAIN


def test_B19_all_members_of_a_gzip_body_are_read() -> None:
    coded = gzip.compress(PLAIN) + gzip.compress(b"more")
    read = decoder("gzip")

    assert b"".join(read.feed(coded[at : at + 7]) for at in range(0, len(coded), 7)) == (
        PLAIN + b"more"
    )


@pytest.mark.parametrize(
    ("coding", "coded"),
    [
        ("gzip", gzip.compress(bytes(50_000_000))),
        ("gzip", gzip.compress(b"x") * 2_000),
        ("deflate", zlib.compress(bytes(50_000_000))),
        ("zstd", zstandard.compress(bytes(50_000_000))),
    ],
    ids=["gzip", "gzip-members", "deflate", "zstd"],
)
def test_B56_what_unfolds_beyond_all_bounds_is_refused(coding: str, coded: bytes) -> None:
    with pytest.raises(UnreadableCoding, match="too many"):
        decoder(coding, most_bytes=1_000).feed(coded)


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "nonsense"])
def test_B14_an_unknown_coding_is_refused(coding: str) -> None:
    with pytest.raises(UnreadableCoding):
        decoder(coding)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_B14_bytes_in_another_coding_are_refused(coding: str) -> None:
    with pytest.raises(UnreadableCoding):
        decoder(coding).feed(PLAIN)


@pytest.mark.parametrize(
    ("accepts", "asked"),
    [
        (b"gzip", b"gzip"),
        (b"br, gzip;q=0.5, ZSTD", b"gzip, zstd"),
        (b"br", b"identity"),
        (b"", b"identity"),
        (b"gzip;q=0, deflate", b"deflate"),
        (b"gzip; q=0.0", b"identity"),
    ],
)
def test_B19_the_upstream_is_asked_for_what_both_can_read(accepts: bytes, asked: bytes) -> None:
    assert readable_accept_encoding(((b"accept-encoding", accepts),)) == asked


def test_B19_gzip_is_for_those_who_take_it_and_refuse_plain_bytes() -> None:
    def wants(accepts: bytes) -> bool:
        return wants_gzip(((b"accept-encoding", accepts),))

    assert wants(b"gzip, identity;q=0")
    assert wants(b"gzip, *;q=0")
    assert wants(b"identity;q=0, *")
    assert not wants(b"gzip")
    assert not wants(b"br, identity;q=0")
    assert not wants(b"gzip;q=0, identity;q=0")
    assert gzip.decompress(gzipped(PLAIN)) == PLAIN
    assert gzipped(PLAIN) == gzipped(PLAIN)
