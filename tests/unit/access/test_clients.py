"""Who a request is from, by mode and by how a credential is spelled."""

import pytest

from proxy.access.base import Identity
from proxy.access.clients import (
    ADMIN_HEADER,
    Access,
    Client,
    ClientMode,
    hash_key,
    proxy_key,
)
from proxy.core.scope import CREDENTIAL_HEADERS
from proxy.errors import NotAuthenticated

ANN = Client("ann", "team-a")
CLIENTS = {hash_key("mp-ann"): ANN, hash_key("mp-bob"): Client("bob", "team-b")}
ADMINS = frozenset({hash_key("adm-1")})
KEYED = Access(ClientMode.KEYS, CLIENTS, ADMINS)
TRUSTING = [ClientMode.TRANSPARENT, ClientMode.OPEN]


def bearer(key: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {key}".encode("latin-1"))


def test_B71_a_key_stands_in_the_settings_as_its_sha256() -> None:
    # As `printf abc | sha256sum` prints it.
    assert hash_key("abc") == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer mp-ann"),
        (b"authorization", b"bearer mp-ann"),
        (b"authorization", b"BEARER   mp-ann "),
        (b"authorization", b"mp-ann"),
        (b"api-key", b"mp-ann"),
        (b"x-api-key", b" mp-ann "),
        (b"x-goog-api-key", b"mp-ann"),
    ],
)
def test_B71_a_key_is_read_in_each_spelling(name: bytes, value: bytes) -> None:
    expected = Identity(client="ann", tenant="team-a")

    assert KEYED.identify(((b"accept", b"*/*"), (name, value))) == expected


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((), id="nothing"),
        pytest.param(((b"authorization", b""),), id="empty"),
        pytest.param(((b"authorization", b"Bearer"),), id="scheme-alone"),
        pytest.param(((b"authorization", b"Bearer "),), id="scheme-and-space"),
        pytest.param((bearer("mp-eve"),), id="unknown"),
        pytest.param((bearer("MP-ANN"),), id="other-case"),
        pytest.param((bearer("mp-ann x"),), id="more-than-the-key"),
        pytest.param((bearer(hash_key("mp-ann")),), id="the-hash-itself"),
        pytest.param(((b"authorization", b"Basic mp-ann"),), id="other-scheme"),
        pytest.param(((b"api-key", b"Bearer mp-ann"),), id="scheme-where-none-belongs"),
        pytest.param(((b"x-key", b"mp-ann"),), id="other-header"),
        pytest.param(((b"cookie", b"mp-ann"),), id="cookie"),
        pytest.param(((b"authorization", b"Bearer \xff\xfe"),), id="not-utf-8"),
        pytest.param(((ADMIN_HEADER, b"adm-1"),), id="an-admin-is-no-client"),
        pytest.param((bearer("mp-eve"), (b"api-key", b"mp-ann")), id="the-first-place-counts"),
    ],
)
def test_B71_who_shows_no_known_key_is_refused(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(NotAuthenticated) as caught:
        KEYED.identify(headers)

    assert (caught.value.status, caught.value.error_code) == (401, "invalid_api_key")
    for _, value in headers:
        shown = value.decode("latin-1").removeprefix("Bearer").strip()
        assert not shown or shown not in caught.value.message, "B69: no key is repeated"


def test_B70_where_keys_are_asked_for_the_client_s_own_credential_scopes_nothing() -> None:
    assert KEYED.identify((bearer("mp-ann"),)).credential is None


@pytest.mark.parametrize("shown", [b"Bearer ", b""])
def test_B71_who_shows_no_key_hears_how_to(shown: bytes) -> None:
    with pytest.raises(NotAuthenticated, match="No API key was given"):
        KEYED.identify(((b"authorization", shown),))


def test_proxy_key_of_nothing() -> None:
    assert proxy_key(((b"accept", b"*/*"),)) is None


@pytest.mark.parametrize("mode", TRUSTING)
def test_B70_without_a_credential_there_is_none_to_scope_by(mode: ClientMode) -> None:
    assert Access(mode, {}).identify(((b"accept", b"*/*"),)) == Identity()


@pytest.mark.parametrize("mode", TRUSTING)
@pytest.mark.parametrize("name", CREDENTIAL_HEADERS)
def test_B70_every_header_that_can_carry_a_credential_tells_clients_apart(
    name: bytes, mode: ClientMode
) -> None:
    access = Access(mode, {})

    told = [
        access.identify(headers).credential
        for headers in (
            ((name, b"Bearer sk-1"),),
            ((name, b"Bearer sk-2"),),
            ((name, b"Bearer sk-1"), (b"api-key", b"sk-3")),
            ((b"accept", b"text/html"), (name, b"Bearer sk-1"), (b"cookie", b"a=b")),
        )
    ]

    assert len(set(told)) == 3
    assert told[0] == told[3], "other headers are no credential"
    assert None not in told
    assert all("sk-" not in fingerprint for fingerprint in told if fingerprint)


def test_B70_one_credential_in_two_headers_is_two_credentials() -> None:
    access = Access(ClientMode.TRANSPARENT, {})
    told = {access.identify(((name, b"sk-1"),)).credential for name in CREDENTIAL_HEADERS}

    assert len(told) == len(CREDENTIAL_HEADERS)


@pytest.mark.parametrize(
    ("shown", "admin"),
    [(b"adm-1", True), (b"adm-2", False), (b"", False), (b"ADM-1", False), (b"\xff", False)],
)
@pytest.mark.parametrize("mode", list(ClientMode))
def test_B12_who_shows_an_admin_key_is_one(mode: ClientMode, shown: bytes, admin: bool) -> None:
    access = Access(mode, CLIENTS, ADMINS)
    headers = (bearer("mp-ann"), (ADMIN_HEADER, shown))

    assert access.identify(headers).admin is admin
    assert access.is_admin(headers) is admin


def test_B73_admin_is_refused_to_who_shows_no_admin_key() -> None:
    KEYED.require_admin(((ADMIN_HEADER, b"adm-1"),))
    for headers in ((), (bearer("adm-1"),), ((ADMIN_HEADER, hash_key("adm-1").encode()),)):
        with pytest.raises(NotAuthenticated) as caught:
            KEYED.require_admin(headers)
        assert caught.value.error_code == "invalid_admin_key"


@pytest.mark.parametrize("shown", [b"", b"adm-1", b"mp-ann"])
def test_B73_without_admin_keys_nobody_is_admin(shown: bytes) -> None:
    access = Access(ClientMode.KEYS, CLIENTS)
    headers = (bearer("mp-ann"), (ADMIN_HEADER, shown))

    assert not access.identify(headers).admin
    with pytest.raises(NotAuthenticated):
        access.require_admin(headers)
