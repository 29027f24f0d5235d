"""All items under way in one worker: each is asked for once, whoever wants it meanwhile (B30)."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from proxy.coalesce.base import Coalescer, FlightEnd
from proxy.core.entry import Entry
from proxy.core.rules import Coalescing
from proxy.core.shares import added_usage
from proxy.engine.base import FlightObserver
from proxy.engine.entries import Entries
from proxy.engine.item_asking import Asking, Want
from proxy.engine.item_fetch import Fetch
from proxy.engine.item_fetching import Fetching
from proxy.engine.plan import Plan
from proxy.errors import ClientDeadline
from proxy.tasks import TaskGroup

TASK: Final = "item-fetch"


class Fetches:
    """The fetches that may be joined, by item; lives as long as the process."""

    def __init__(
        self,
        entries: Entries,
        tasks: TaskGroup,
        observer: FlightObserver,
        coalescer: Coalescer | None = None,
    ) -> None:
        self._entries = entries
        self._tasks = tasks
        self._observer = observer
        self._coalescer = coalescer
        self._table: dict[str, Fetch] = {}
        self._watches: list[dict[str, Entry]] = []

    def __len__(self) -> int:
        """How many items may be joined now."""
        return len(self._table)

    @contextmanager
    def watching(self) -> Iterator[dict[str, Entry]]:
        """Around a look-up: what lands meanwhile, which it may have missed.

        A purge may have come since that was asked for: whoever takes it asks about that.
        """
        watch: dict[str, Entry] = {}
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches = [other for other in self._watches if other is not watch]

    def under_way(self, plan: Plan, key: str) -> Fetch | None:
        """The fetch that this item can be had from, unless a purge has come between."""
        fetch = self._table.get(key)
        if fetch is None or not _shares(plan) or not self._entries.is_live(fetch.call(key)):
            return None
        return fetch

    @contextmanager
    def aboard(self, fetch: Fetch, *, owns: bool) -> Iterator[None]:
        """While a batch waits for items of this fetch; `owns` where it began it."""
        fetch.board()
        gone = False
        try:
            yield
        except (asyncio.CancelledError, ClientDeadline):
            gone = True
            raise
        finally:
            fetch.leave(owns=owns, gone=gone)
            self._ended(fetch)

    def start(
        self, asking: Asking, plan: Plan, wants: Sequence[Want], *, whole: bool, joinable: bool
    ) -> Fetch:
        """A new fetch, under way; whoever starts it is `aboard` before waiting for anything.

        `joinable` False keeps it for its own batch, whatever the rule says.
        """
        joinable = joinable and plan.is_kept and _shares(plan)
        began = asking.clock.wall()
        fetch = Fetch(plan, wants, self._landed, whole=whole, joinable=joinable, began=began)
        self._begin(asking, fetch)
        return fetch

    def refresh(
        self, asking: Asking, plan: Plan, wants: Sequence[Want], *, joinable: bool = True
    ) -> Fetch:
        """A fetch that no batch waits for, of items whose entries still serve; under way.

        `joinable` False: nor does one begin to wait for it.
        """
        fetch = Fetch(
            plan,
            wants,
            self._landed,
            whole=False,
            joinable=joinable and plan.is_kept and _shares(plan),
            began=asking.clock.wall(),
            refreshes=True,
        )
        self._begin(asking, fetch)
        # It waits for itself: what is asked for with nobody waiting would be given up.
        fetch.board()
        return fetch

    def _begin(self, asking: Asking, fetch: Fetch) -> None:
        if fetch.joinable:
            self._table.update(dict.fromkeys(fetch.wants, fetch))
        work = Fetching(fetch, asking, self._entries, self._tasks, self._coalescer)
        fetch.task = self._tasks.start(work.run(), name=TASK)
        fetch.task.add_done_callback(lambda _: self._done(fetch))

    def _landed(self, fetch: Fetch, found: Mapping[str, Entry | None]) -> None:
        """These are under way no more; look-ups that may have missed them are told."""
        for key, entry in found.items():
            if self._table.get(key) is fetch:
                del self._table[key]
            if entry is not None and fetch.joinable:
                for watch in self._watches:
                    watch[key] = entry

    def _done(self, fetch: Fetch) -> None:
        fetch.end()  # also where the task was cancelled before its first step
        if fetch.refreshes:
            fetch.leave(owns=False, gone=False)
        self._ended(fetch)

    def _ended(self, fetch: Fetch) -> None:
        """Tell of work that no client's outcome tells of."""
        if fetch.is_owned or fetch.task is None or not fetch.task.done():
            return
        new = fetch.unaccounted()
        if new or fetch.untold() is not None:
            purpose = "refresh" if fetch.refreshes else "finish"
            end = FlightEnd.STORED if fetch.stored else FlightEnd.FAILED
            usage = added_usage(asked.usage for asked in new)
            model = fetch.plan.chain.model
            self._observer.finished_unattended(purpose, end.value, model, usage)


def _shares(plan: Plan) -> bool:
    """Whether this call's items are shared with others: not where it wants new ones (B40)."""
    rule = plan.derivation.rule
    return rule is not None and rule.coalesce is not Coalescing.OFF and not plan.control.no_cache
