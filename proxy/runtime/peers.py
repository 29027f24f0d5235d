"""What a worker asks of the others that serve beside it."""

from typing import Protocol

from proxy.core.families import Family
from proxy.core.selectors import Mark
from proxy.runtime.key_reports import Report


class Peers(Protocol):
    """The other workers of one proxy."""

    async def purged(self, mark: Mark) -> None:
        """Return when they have the purge in force, or were waited for long enough."""
        ...

    async def metrics(self, own: list[Family]) -> list[list[Family]]:
        """What all have counted, `own` included. Raises `WorkersSilent`."""
        ...

    async def keys(self, own: Report) -> dict[int, Report]:
        """What those that serve know of upstream keys, `own` included, by their numbers.

        Raises `WorkersSilent`.
        """
        ...
