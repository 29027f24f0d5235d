"""What each answer says about the key."""

import gzip
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.classify import LONGEST_BODY, classify
from proxy.upstream.verdict import (
    KeyLimited,
    KeyRejected,
    KeyUnfit,
    KeyWorks,
    Neutral,
    UpstreamFault,
    Verdict,
)

WALL = 1_800_000_000.0


def error(code: str | None, kind: str = "x") -> bytes:
    spelled = "null" if code is None else f'"{code}"'
    return b'{"error": {"message": "m", "type": "%s", "code": %s}}' % (
        kind.encode(),
        spelled.encode(),
    )


LACKS_SCOPE = (
    b'{"error": {"message": "You have insufficient permissions for this operation. Missing scopes: '
    b'api.responses.write.", "type": "invalid_request_error", "param": null, "code": null}}'
)


@pytest.mark.parametrize(
    ("status", "headers", "body", "verdict"),
    [
        (200, {}, b"", KeyWorks()),
        (204, {}, b"", KeyWorks()),
        (307, {}, b"", KeyWorks()),
        (400, {}, error("invalid_api_key"), Neutral()),
        (400, {}, error("billing_hard_limit_reached"), Neutral()),
        (404, {}, error("model_not_found"), Neutral()),
        (409, {}, b"", Neutral()),
        (413, {}, b"", Neutral()),
        (422, {}, b"", Neutral()),
        (499, {}, b"", Neutral()),
        (429, {}, b"", KeyLimited(None)),
        (429, {b"Retry-After": b"7"}, b"", KeyLimited(7.0)),
        (429, {b"x-ratelimit-reset-requests": b"6m0s"}, b"{}", KeyLimited(360.0)),
        (429, {}, error("rate_limit_exceeded"), KeyLimited(None)),
        (429, {}, error("insufficient_quota"), KeyLimited(None, quota=True)),
        (429, {}, error(None, "insufficient_quota"), KeyLimited(None, quota=True)),
        (429, {b"retry-after": b"3"}, error("Insufficient_Quota"), KeyLimited(3.0, quota=True)),
        (429, {}, b'{"code": "insufficient_quota"}', KeyLimited(None, quota=True)),
        (402, {}, b"Insufficient Balance", KeyLimited(None, quota=True)),
        (403, {}, error("insufficient_quota"), KeyLimited(None, quota=True)),
        (403, {}, error("billing_not_active"), KeyLimited(None, quota=True)),
        (401, {}, b"", KeyRejected("status 401")),
        (401, {}, error("invalid_api_key"), KeyRejected("status 401")),
        (401, {}, b"\xff not json", KeyRejected("status 401")),
        (401, {}, error("mismatched_organization"), Neutral()),
        (401, {}, error("invalid_project"), Neutral()),
        (401, {}, error("missing_scope"), KeyUnfit()),
        (401, {}, LACKS_SCOPE, KeyUnfit()),
        (403, {}, LACKS_SCOPE, KeyUnfit()),
        (403, {}, error("account_deactivated"), KeyRejected("status 403, account_deactivated")),
        (403, {}, error("unsupported_country_region_territory"), Neutral()),
        (403, {}, b"", Neutral()),
        (408, {}, b"", UpstreamFault("status 408")),
        (500, {}, error("account_deactivated"), UpstreamFault("status 500")),
        (502, {}, b"", UpstreamFault("status 502")),
        (503, {b"retry-after": b"7"}, b"", UpstreamFault("status 503", again=False)),
        (503, {b"Retry-After": b"0"}, b"", UpstreamFault("status 503")),
        (503, {b"x-ratelimit-reset-tokens": b"6m0s"}, b"", UpstreamFault("status 503")),
        (500, {b"X-Should-Retry": b"false"}, b"", UpstreamFault("status 500", again=False)),
        (500, {b"x-should-retry": b"true"}, b"", UpstreamFault("status 500")),
        (504, {}, b"", UpstreamFault("status 504")),
        (529, {}, b"", UpstreamFault("status 529")),
        (520, {}, b"", UpstreamFault("status 520")),
        (599, {}, b"", UpstreamFault("status 599")),
        (501, {}, b"", Neutral()),
        (505, {}, b"", Neutral()),
    ],
)
def test_B62_the_verdict_on_an_answer(
    status: int, headers: dict[bytes, bytes], body: bytes, verdict: Verdict
) -> None:
    assert classify(status, tuple(headers.items()), body, WALL) == verdict


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        (b"gzip", gzip.compress),
        (b"GZIP", gzip.compress),
        (b"deflate", zlib.compress),
        (b"zstd", zstandard.compress),
        (b"identity", bytes),
    ],
)
def test_B62_a_coded_error_is_read(coding: bytes, pack: object) -> None:
    assert callable(pack)
    packed = pack(error("insufficient_quota"))
    verdict = classify(429, ((b"Content-Encoding", coding),), packed, WALL)
    assert verdict == KeyLimited(None, quota=True)


def test_B62_an_unreadable_error_still_cools() -> None:
    assert classify(429, ((b"content-encoding", b"br"),), b"\x1b\x03", WALL) == KeyLimited(None)


def test_B62_an_error_that_clients_can_make_unreadable_retires_no_key() -> None:
    coded = ((b"content-encoding", b"br"),)
    assert classify(401, coded, b"\x1b\x03", WALL) == KeyUnfit()
    assert classify(403, coded, b"\x1b\x03", WALL) == Neutral()


def test_B62_a_compressed_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(b'{"error": {"code": "insufficient_quota"}' + b" " * 50_000_000 + b"}")
    assert len(bomb) < LONGEST_BODY
    assert classify(429, ((b"content-encoding", b"gzip"),), bomb, WALL) == KeyLimited(None)


@given(
    st.sampled_from([401, 402, 403, 429]),
    st.sampled_from([b"", b"gzip", b"deflate", b"zstd", b"br"]),
    st.binary(max_size=200) | st.sampled_from([b"[]", b"[1]", b'{"error": []}', b'{"code": 1}']),
)
def test_B62_no_body_breaks_the_verdict(status: int, coding: bytes, body: bytes) -> None:
    classify(status, ((b"content-encoding", coding),), body, WALL)
