"""What the engine is told of a client."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request is from: `tenant` scopes its entries.

    So does `credential` (a fingerprint), where the client's own goes upstream.
    """

    client: str | None = None
    tenant: str | None = None
    credential: str | None = None
    admin: bool = False

    @property
    def party(self) -> str:
        """Who gets a fair share where requests wait for each other."""
        return self.tenant or self.client or self.credential or ""
