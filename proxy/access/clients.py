"""Who is asking: proxy keys known by their hashes, or the client's own credential, unread."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from proxy.access.base import Identity
from proxy.core.scope import CREDENTIAL_HEADERS, credential_fingerprint
from proxy.core.websocket import offered_key
from proxy.core.wire import Headers, header
from proxy.errors import NotAuthenticated

ADMIN_HEADER = b"x-admin-key"
HASH_PREFIX = "sha256:"


def hash_key(key: str) -> str:
    """The form in which a proxy key stands in the settings; keys are random, so no salt."""
    return HASH_PREFIX + hashlib.sha256(key.encode()).hexdigest()


class ClientMode(StrEnum):
    """How clients are told apart."""

    TRANSPARENT = "transparent"  # their own credential goes upstream and scopes their entries
    OPEN = "open"  # the same, but for upstreams with keys everybody is one tenant
    KEYS = "keys"  # each shows a proxy key


@dataclass(frozen=True, slots=True)
class Client:
    """One configured client; several may share a tenant, and then its entries."""

    name: str
    tenant: str


class Access:
    """Authenticates requests against one configuration."""

    def __init__(
        self,
        mode: ClientMode,
        clients_by_hash: Mapping[str, Client],
        admin_hashes: frozenset[str] = frozenset(),
    ) -> None:
        self._mode = mode
        self._clients = clients_by_hash
        self._admin_hashes = admin_hashes

    def identify(self, headers: Headers) -> Identity:
        """The identity behind the headers. Raises `NotAuthenticated` where keys are required."""
        admin = self._admin_hashes != frozenset() and self.is_admin(headers)
        match self._mode:
            # Where everybody may in, a credential counts only for upstreams that are sent it.
            case ClientMode.TRANSPARENT | ClientMode.OPEN:
                return Identity(credential=_own_credential(headers), admin=admin)
            case ClientMode.KEYS:
                client = self._client(headers)
                return Identity(client=client.name, tenant=client.tenant, admin=admin)

    def is_admin(self, headers: Headers) -> bool:
        """True where the admin header holds a key whose hash is configured."""
        shown = header(headers, ADMIN_HEADER)
        return shown is not None and hash_key(shown.decode("latin-1")) in self._admin_hashes

    def require_admin(self, headers: Headers) -> None:
        """Raises `NotAuthenticated` unless the request shows an admin key."""
        if not self.is_admin(headers):
            raise NotAuthenticated(
                "This needs an admin key in the X-Admin-Key header "
                "(admin.key_hashes in the settings).",
                code="invalid_admin_key",
            )

    def _client(self, headers: Headers) -> Client:
        key = proxy_key(headers)
        if not key:
            raise NotAuthenticated(
                "No API key was given. Send a proxy key as 'Authorization: Bearer KEY'."
            )
        # A dictionary look-up by hash leaks no more by timing than the hash of a guess.
        client = self._clients.get(hash_key(key))
        if client is None:
            raise NotAuthenticated("The API key is not known to this proxy.")
        return client


def proxy_key(headers: Headers) -> str | None:
    """The key a client shows: the bearer token, the bare value of an `api-key` header, or what a
    browser offers among the subprotocols of a WebSocket.
    """
    for name in CREDENTIAL_HEADERS:
        value = header(headers, name)
        if value is None:
            continue
        text = value.decode("latin-1").strip()
        scheme, _, token = text.partition(" ")
        if name == b"authorization" and scheme.lower() == "bearer":
            return token.strip()
        return text
    offered = offered_key(headers)
    return None if offered is None else offered.decode("latin-1")


def _own_credential(headers: Headers) -> str | None:
    """A fingerprint over every header that can carry a credential; None where there is none."""
    shown = [name + b"\0" + value for name, value in headers if name in CREDENTIAL_HEADERS]
    return credential_fingerprint(b"\0\0".join(shown)) if shown else None
