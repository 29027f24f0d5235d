"""One proxy: its parts, from start to stop, and the configuration in force."""

import asyncio
import io
import logging
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Final

from prometheus_client.metrics_core import Metric

from proxy.clock import Clock, SystemClock
from proxy.core.families import Family, merged
from proxy.core.outcome import Outcome
from proxy.core.selectors import Mark
from proxy.core.variants import Turns
from proxy.engine.base import Observer
from proxy.engine.dictionaries import Dictionaries
from proxy.engine.entries import Entries
from proxy.engine.flights import Flights
from proxy.engine.generations import Generations
from proxy.engine.item_fetches import Fetches
from proxy.engine.purging import Purging
from proxy.engine.refresh import Refreshes
from proxy.engine.resources import Resources
from proxy.engine.service import CacheService, Lasting
from proxy.engine.sweeping import Sweeps
from proxy.engine.write_behind import WriteBehind
from proxy.errors import StoreUnavailable
from proxy.metrics import (
    Metrics,
    StoreReport,
    circuit_metrics,
    counter,
    gate_metrics,
    gauge,
    key_metrics,
    rendered,
    store_metrics,
)
from proxy.request_log import CLOSE_SECONDS, RequestLog
from proxy.runtime.build import (
    build_access,
    build_catalogue,
    build_dictionaries,
    build_forwarder,
    build_policy,
    build_tiers,
    combine,
    prices,
    write_limits,
)
from proxy.runtime.certificates import check_certificates
from proxy.runtime.connections import ConnectionLimits
from proxy.runtime.key_reports import Report, key_report, merged_reports
from proxy.runtime.key_states import KeyStates
from proxy.runtime.peers import Peers
from proxy.runtime.request_ids import RequestIds
from proxy.runtime.sharing import build_shared
from proxy.runtime.snapshot import Snapshot
from proxy.settings.compile import compile_resources
from proxy.settings.invalidation import compile_events
from proxy.settings.models import Settings
from proxy.stores.base import Store, StoreStats
from proxy.tasks import TaskGroup
from proxy.upstream.base import Transport

if TYPE_CHECKING:
    from proxy.upstream.dispatch import UpstreamSet

log = logging.getLogger("magic_proxy")

# Of the memory for the hot path, the part for entries as they were decoded: 1/4.
_READY_SHARE = 4
# What requests that were cancelled, and writes that are queued, get at the stop.
_LAST_SECONDS = 3.0
LONGEST_STOP_SECONDS: Final = 3 * _LAST_SECONDS + CLOSE_SECONDS + 1.0
"""How long `Runtime.stop` may take: three such waits, and the last lines of the log."""


@dataclass(frozen=True, slots=True)
class _Observers:
    """Tells each of several observers."""

    observers: tuple[Observer, ...]

    def told(self, outcome: Outcome) -> None:
        for observer in self.observers:
            observer.told(outcome)

    def told_again(self, outcome: Outcome, request_id: str) -> None:
        for observer in self.observers:
            observer.told_again(outcome, request_id)


class Runtime:
    """Everything that lives as long as the process. Start and stop it inside one event loop.

    Raises `SettingsError` for settings that name files which can't be used, here and in `reload`.
    `peers` are the workers that serve beside this one.
    """

    def __init__(
        self, settings: Settings, *, clock: Clock | None = None, peers: Peers | None = None
    ) -> None:
        check_certificates(settings)
        self._peers = peers
        self.clock = clock or SystemClock()
        self.tasks = TaskGroup()
        self.serving = False
        self.request_ids = RequestIds()
        self.metrics = Metrics(prices(settings))
        self._settings = settings
        self._latest = settings
        self._background = TaskGroup()
        self._tiers: list[Store] = build_tiers(settings, self.clock, self.metrics)
        self._store = combine(self._tiers)
        self._request_log: RequestLog | None = None
        observers: list[Observer] = [self.metrics]
        if settings.server.access_log:
            self._request_log = RequestLog(_standard_output(), self.clock, shared=peers is not None)
            observers.append(self._request_log)
        self._observer = _Observers(tuple(observers))
        self._writes: WriteBehind | None = None
        self._lasting: Lasting | None = None
        self._purging: Purging | None = None
        self._flying = TaskGroup()
        self._shared = build_shared(settings, self.clock)
        self._keys = KeyStates(self._shared.board, self.clock, self._background)
        # Open ones: those of the settings in force, and those that work under way still needs.
        self._transports: set[Transport] = set()
        self._forwarder: UpstreamSet | None = None
        self._snapshot: Snapshot | None = None
        self._reports: list[StoreReport] = []

    @property
    def snapshot(self) -> Snapshot:
        """The configuration in force."""
        assert self._snapshot is not None, "the runtime has not been started"
        return self._snapshot

    @property
    def purging(self) -> Purging:
        """What purges, under all configurations."""
        assert self._purging is not None, "the runtime has not been started"
        return self._purging

    @property
    def _key_prefix(self) -> str:
        """The start of every store key: the same for the life of the process."""
        return self._settings.cache_settings.key_prefix

    @property
    def has_admins(self) -> bool:
        """Whether anybody may use `/admin`."""
        return bool(self._latest.admin.key_hashes)

    @property
    def hot_path_bytes(self) -> int:
        """How many bytes the hot path may hold; 0 is none of it."""
        return self._settings.server.hot_path_bytes

    @property
    def hot_path_request_bytes(self) -> int:
        """The longest request that the hot path takes, its head included."""
        return self._settings.server.hot_path_request_bytes

    @property
    def connection_limits(self) -> ConnectionLimits:
        """What connections are allowed: the same for the life of the process."""
        server = self._settings.server
        return ConnectionLimits(
            server.request_head_seconds, server.request_gap_seconds, server.max_connections
        )

    async def start(self) -> None:
        """Open the store, begin to write and to log; a store that is down does not keep it up."""
        for tier in self._tiers:
            try:
                await tier.open()
            except StoreUnavailable as error:
                log.warning("store %s is not available at start: %s", tier.name, error.message)
        dictionaries = build_dictionaries(
            self._settings, self._tiers, self.clock, self._background, self.metrics
        )
        self._writes = WriteBehind(
            self._store, self._background, write_limits(self._settings), self.metrics, dictionaries
        )
        self._lasting = await self._last(self._writes, dictionaries)
        dictionaries.start()
        self._writes.start()
        if self._request_log is not None:
            self._background.start(self._request_log.run(), name="request-log")
        self.metrics.add_collector(self._scraped)
        self._put_in_force(self._latest)
        self.serving = True

    def reload(self, settings: Settings) -> None:
        """Put new settings in force for the requests that begin from now on."""
        check_certificates(settings)
        if self._lasting is not None:
            self._lasting.generations.poll_seconds = settings.cache_settings.purge_poll_seconds
        self._latest = settings
        if self._lasting is not None:  # else the start puts them in force
            self._put_in_force(settings)

    async def stop(self) -> None:
        """Write what is queued, within a few seconds, and let go of everything."""
        self.serving = False
        # The server has given answers under way their grace time before it calls this.
        await self.tasks.drain(_LAST_SECONDS)
        await self._flying.drain(_LAST_SECONDS)
        if self._writes is not None and not await self._writes.drain(_LAST_SECONDS):
            log.warning("%d entries were not written before the stop", len(self._writes))
        if self._lasting is not None:
            await self._lasting.generations.close()
        await self._keys.close()
        await self._background.cancel()
        await self._shared.close()
        await self._close(tuple(self._transports))
        await self._store.close()
        if self._request_log is not None:
            await self._request_log.close()

    async def store_reports(self) -> list[StoreReport]:
        """The state of each tier."""
        return [StoreReport(tier.name, tier.available, await _stats(tier)) for tier in self._tiers]

    def store_states(self) -> dict[str, bool]:
        """Which tiers answer, as far as is known without asking them."""
        return {tier.name: tier.available for tier in self._tiers}

    def circuit_states(self) -> dict[str, str]:
        """For each upstream: where its circuit stands."""
        states = {} if self._forwarder is None else self._forwarder.circuit_states()
        return {name: state.value for name, state in states.items()}

    async def key_report(self) -> Report:
        """Every upstream key: state, reason, times, use, limits; never the key.

        As all workers know them. Raises WorkersSilent.
        """
        own = self.own_key_report()
        return own if self._peers is None else merged_reports(await self._peers.keys(own))

    def own_key_report(self) -> Report:
        """The same, as this worker knows them."""
        states = self._forwarder.key_states() if self._forwarder is not None else {}
        return key_report(states, self.clock.wall())

    async def exposition(self) -> bytes:
        """The metrics of all workers, with what the tiers hold now. Raises WorkersSilent."""
        if self._peers is None:
            self._reports = await self.store_reports()
            return self.metrics.exposition()
        return rendered(merged(await self._peers.metrics(await self.families())))

    async def families(self) -> list[Family]:
        """The metrics of this worker, as values."""
        self._reports = await self.store_reports()
        return self.metrics.families()

    async def purged_elsewhere(self, mark: Mark) -> None:
        """Have in force what another worker purged."""
        if self._lasting is not None:  # else the start reads it
            await self._lasting.generations.told(mark)

    async def _last(self, writes: WriteBehind, dictionaries: Dictionaries) -> Lasting:
        """What all configurations of this process share."""
        await self._shared.open()
        generations = Generations(
            self._shared.marks,
            self.clock,
            self._background,
            self.metrics,
            poll_seconds=self._settings.cache_settings.purge_poll_seconds,
            tell=self._peers.purged if self._peers is not None else None,
        )
        await generations.open()
        self._keys.open(self._latest)
        await self._shared.listen()
        entries = Entries(
            self._store,
            writes,
            generations,
            self.clock,
            self._background,
            self.metrics,
            dictionaries,
            ready_bytes=self.hot_path_bytes // _READY_SHARE,
        )
        flights = Flights(
            entries, generations, self.clock, self._flying, self.metrics, self._shared.coalescer
        )
        sweeps = Sweeps(self._tiers, generations, self.clock, self._background, dictionaries)
        self._purging = Purging(
            generations, self._store, sweeps, self.clock, self.metrics, dictionaries
        )
        fetches = Fetches(entries, self._flying, self.metrics, self._shared.coalescer)
        return Lasting(
            entries, generations, flights, fetches, Refreshes(flights, self.clock), Turns()
        )

    def _put_in_force(self, settings: Settings) -> None:
        assert self._lasting is not None
        forwarder = build_forwarder(settings, self.clock, self.metrics)
        if (before := self._forwarder) is not None:
            forwarder.take_over(before)
            # Requests, and flights that outlive them, hold on to what they began with: when the
            # last of them lets go, its connections can be closed.
            loop = asyncio.get_running_loop()
            weakref.finalize(before, self._close_later, loop, before.transports)
        self._forwarder = forwarder
        self._keys.follow(settings, forwarder.pools)
        self._transports.update(forwarder.transports)
        policy = replace(build_policy(settings), key_prefix=self._key_prefix)
        catalogue = build_catalogue(settings, forwarder)
        self._snapshot = Snapshot(
            service=CacheService(policy, self._lasting, forwarder, self.clock, self._observer),
            resources=Resources(
                compile_resources(settings),
                CacheService(policy, self._lasting, catalogue, self.clock, self._observer),
                catalogue,
                self._lasting.generations,
                self.clock,
                enabled=policy.enabled,
            ),
            forwarder=self._forwarder,
            access=build_access(settings),
            observer=self._observer,
            max_body_bytes=settings.server.max_body_bytes,
            websocket_idle_seconds=settings.server.websocket_idle_seconds,
            key_prefix=self._key_prefix,
            events=compile_events(settings.invalidation),
        )

    def _close_later(
        self, loop: asyncio.AbstractEventLoop, transports: tuple[Transport, ...]
    ) -> None:
        # The last reference may go in another thread.
        if not loop.is_closed():
            loop.call_soon_threadsafe(
                lambda: self._background.start(self._close(transports), name="close-upstreams")
            )

    async def _close(self, transports: tuple[Transport, ...]) -> None:
        for transport in transports:
            if transport in self._transports:
                self._transports.discard(transport)
                await transport.aclose()

    def _scraped(self) -> Iterable[Metric]:
        yield from store_metrics(self._reports)
        if self._writes is not None:
            yield gauge(
                "magic_proxy_write_queue_entries", "Entries on their way.", len(self._writes)
            )
        yield gauge("magic_proxy_in_flight", "Requests under way.", self.tasks.count("request"))
        if self._lasting is not None:
            flights, refreshes = self._lasting.flights, self._lasting.refreshes
            yield gauge(
                "magic_proxy_flights", "Upstream requests that others may join.", len(flights)
            )
            yield gauge("magic_proxy_refreshes_in_flight", "Refreshes under way.", len(refreshes))
            yield counter(
                "magic_proxy_refreshes_skipped",
                "Refreshes not begun because too many were under way.",
                refreshes.skipped,
            )
        if self._forwarder is not None:
            yield from key_metrics(self._forwarder.key_states())
            yield from circuit_metrics(self._forwarder.circuit_states())
            yield from gate_metrics(self._forwarder.gate_states())


async def _stats(tier: Store) -> StoreStats:
    try:
        return await tier.stats()
    except StoreUnavailable:
        return StoreStats()


def _standard_output() -> BinaryIO | io.RawIOBase:
    """Without its buffer where it has one; text that was printed before goes out first."""
    sys.stdout.flush()
    buffered: BinaryIO = sys.stdout.buffer
    return buffered.raw if isinstance(buffered, io.BufferedWriter) else buffered
