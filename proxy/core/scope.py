"""Scopes: who shares entries with whom."""

from collections.abc import Iterable
from hashlib import sha256
from operator import itemgetter
from typing import Final

from proxy.core.canonical import canonical_json
from proxy.core.request import SHARED_SCOPE
from proxy.core.wire import JsonValue

# Not cookies: what sets them is usually a load balancer, and clients send them back from the second
# request on. An upstream that signs people in by cookie names it in its `account_headers`.
CREDENTIAL_HEADERS: Final = (b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key")

_DIGITS = 32


def make_scope(
    *,
    tenant: str | None = None,
    credential: str | None = None,
    account_headers: Iterable[tuple[str, str]] = (),
    query: str = "",
) -> str:
    """A token of `[a-z0-9]` that two requests share only if all the parts are equal.

    `credential` is a fingerprint; `account_headers` are the headers that choose an account,
    different ones in any order; `query` is the raw query string. Parts that are None or empty are
    absent, and with no part at all the scope is `shared`.
    """
    # By name only: of a header that is sent twice, which one counts is the upstream's choice.
    account = sorted(((name.lower(), value) for name, value in account_headers), key=itemgetter(0))
    parts = _parts(tenant, credential, account, query)
    if not parts:
        return SHARED_SCOPE
    return sha256(canonical_json(parts)).hexdigest()[:_DIGITS]


def _parts(
    tenant: str | None, credential: str | None, account: list[tuple[str, str]], query: str
) -> dict[str, JsonValue]:
    parts: dict[str, JsonValue] = {
        "tenant": tenant,
        "credential": credential,
        "account": [[name, value] for name, value in account],
        "query": query,
    }
    return {name: part for name, part in parts.items() if part}


def credential_fingerprint(secret: bytes) -> str:
    """A name for a secret that does not tell it: 32 hex digits of its SHA-256."""
    return sha256(secret).hexdigest()[:_DIGITS]
