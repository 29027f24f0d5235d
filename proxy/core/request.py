"""The cacheable request, as the pure core sees it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from proxy.core.values import value
from proxy.core.wire import Endpoint, Headers, JsonValue

# The scope of requests that nothing separates.
SHARED_SCOPE: Final = "shared"


class Flaw(StrEnum):
    """Why a body that a JSON parser accepts can't be represented exactly (B18)."""

    DUPLICATE_MEMBER = "duplicate-member"
    LONE_SURROGATE = "lone-surrogate"
    NUMBER_RANGE = "number-range"


@value(frozen=True, slots=True)
class CacheableRequest:
    """One request to a cacheable endpoint.

    `model` is the internal model name, after aliases; `fields` are the members of the body;
    `scope` separates tenants, credentials, accounts and query strings; `flaw` is set where the
    body can't be represented exactly, and then there is no key. `is_plain` is that of the body.
    """

    endpoint: Endpoint
    model: str
    fields: Mapping[str, JsonValue]
    scope: str = SHARED_SCOPE
    headers: Headers = ()
    flaw: Flaw | None = None
    is_plain: bool = False
