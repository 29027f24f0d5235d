"""`clients` and `admin`: who may use the proxy."""

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from proxy.settings.types import HASH_PATTERN, NAME_PATTERN, Name, Section

KeyHash: TypeAlias = Annotated[str, Field(pattern=HASH_PATTERN)]

OPEN: Literal["open"] = "open"


class ClientSettings(Section):
    """One client, known by the hashes of its keys (`magic-proxy hash-key` prints them)."""

    name: Name = Field(description="Name in logs and metrics.")
    key_hashes: tuple[KeyHash, ...] = Field(
        min_length=1, description="`sha256:` and 64 hex digits, one for each key."
    )
    tenant: Name = Field(
        default="", description="Clients of one tenant share entries; default: the client's name."
    )

    @model_validator(mode="before")
    @classmethod
    def _tenant_is_name(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("tenant"):
            return given
        name = given.get("name")
        # A bad name is one mistake, not two.
        good = isinstance(name, str) and re.match(NAME_PATTERN, name)
        return {**given, "tenant": name} if good else given


class AdminSettings(Section):
    """Who may use `/admin`, and see cache keys."""

    key_hashes: tuple[KeyHash, ...] = Field(
        default=(),
        description="`sha256:` and 64 hex digits, one for each admin key; none: no admin.",
    )


def _shape(given: Any) -> str:
    return "list" if isinstance(given, list | tuple) else "open"


Clients: TypeAlias = Annotated[
    Annotated[Literal["open"], Tag("open")] | Annotated[tuple[ClientSettings, ...], Tag("list")],
    Discriminator(_shape),
]
