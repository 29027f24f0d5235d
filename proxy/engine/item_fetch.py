"""A fetch: items under way from the upstream, for the batch that began it and all who join (B40).

It belongs to the engine: a task of its own works on it, and clients come and go.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from proxy.core.entry import Entry, EntryMeta
from proxy.core.rules import Coalescing, OnDisconnect
from proxy.engine.item_asking import Asked, Want
from proxy.engine.plan import Plan
from proxy.errors import ProxyError

# Leases are got for all items at once: many more would hold up what all share.
MOST_SHARED: Final = 2048


class Fetch:
    """The shared state; its task feeds it, the batch that began it and those that joined read it.

    `wants` are the items by store key; `on_landing` hears of each once. `whole`: they are all that
    the request asks for, once each, so that it may go upstream as it is. `joinable`: other batches
    may wait for them. `began` is wall-clock seconds. `refreshes`: no batch began it, it replaces
    entries that still serve.
    """

    def __init__(
        self,
        plan: Plan,
        wants: Sequence[Want],
        on_landing: Callable[["Fetch", Mapping[str, Entry | None]], None],
        *,
        whole: bool,
        joinable: bool,
        began: float,
        refreshes: bool = False,
    ) -> None:
        self.plan = plan
        self.refreshes = refreshes
        self._began = began
        self._on_landing = on_landing
        self.wants: Mapping[str, Want] = {want.store_key: want for want in wants}
        self.whole = whole
        self.joinable = joinable
        self.task: asyncio.Task[None] | None = None
        self.asked: list[Asked] = []
        """All answers so far, good or not."""
        self.not_stored = ""
        """The reason for which the first of its items was not stored, "" where all were."""
        self.stored = 0
        """How many entries were stored."""
        self._landed: dict[str, Entry | None] = {}
        self._failed: Asked | ProxyError | None = None
        self._owned = not refreshes
        self._is_taken = False
        self._participants = 0
        self._accounted = 0
        self._ended = False
        self._news = asyncio.Event()

    @property
    def shares_elsewhere(self) -> bool:
        """True where other workers and replicas are asked: not for very many items."""
        rule = self.plan.derivation.rule
        shares = self.joinable and rule is not None and rule.coalesce is Coalescing.SHARED
        return shares and len(self.wants) <= MOST_SHARED

    def call(self, key: str) -> EntryMeta:
        """What purges look at: the call for this item as if its entry were stored at its start."""
        rule = self.plan.derivation.rule
        return EntryMeta(
            key=key,
            model=self.plan.chain.model,
            rule=rule.name if rule is not None else "",
            stored_at=self._began,
            tags=self.plan.tags,
            tenant=self.plan.tenant,
            generation=self.plan.generation,
        )

    # What its task says.

    def land(self, found: Mapping[str, Entry | None]) -> None:
        """What became of some items; None for one that can't be had so."""
        new = {key: entry for key, entry in found.items() if key not in self._landed}
        self._landed |= new
        self._on_landing(self, new)
        self._tell()

    async def fail(self, failure: Asked | ProxyError) -> bool:
        """One request failed, or its answer is none.

        The first failure goes to the batch that began this: True when it has taken it.
        """
        if self._failed is None:
            self._failed = failure
            self._tell()
        if self._failed is not failure:
            return False
        while self._owned and not self._is_taken:
            await self._news.wait()
        return self._is_taken

    def end(self) -> None:
        """Nothing more will come."""
        self.land(dict.fromkeys(self.wants, None))
        self._ended = True
        self._tell()

    # What participants do.

    async def landed(self, key: str) -> Entry | None:
        """The entry of an item, when it is there."""
        while key not in self._landed:
            await self._news.wait()
        return self._landed[key]

    async def ended(self) -> Asked | ProxyError | None:
        """The first failure, at once; or None when all is done."""
        while self._failed is None and not self._ended:
            await self._news.wait()
        self._is_taken = True
        self._tell()
        return self._failed

    @property
    def is_unattended(self) -> bool:
        """True while no client waits for it."""
        return self._participants == 0

    @property
    def is_owned(self) -> bool:
        """True while the batch that began it waits."""
        return self._owned

    def board(self) -> None:
        """One more waits for some of its items."""
        self._participants += 1

    def leave(self, *, owns: bool, gone: bool) -> None:
        """One waits no more; `gone` says that its client went away before it was answered."""
        self._owned = self._owned and not owns
        self._participants -= 1
        self._tell()
        if self.is_unattended and gone and not self._goes_on() and self.task is not None:
            self.task.cancel()

    def unaccounted(self) -> list[Asked]:
        """The answers since this was last asked: each is told of once."""
        new = self.asked[self._accounted :]
        self._accounted = len(self.asked)
        return new

    def untold(self) -> ProxyError | None:
        """A failure that nobody has taken; it is taken now."""
        failed = None if self._is_taken else self._failed
        self._is_taken = self._is_taken or failed is not None
        return failed if isinstance(failed, ProxyError) else None

    def _goes_on(self) -> bool:
        """Whether the work is worth its end with nobody waiting: only for entries (B42)."""
        rule = self.plan.derivation.rule
        finishes = rule is not None and rule.on_disconnect is OnDisconnect.FINISH
        return finishes and self.plan.is_kept

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
