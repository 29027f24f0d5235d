"""The outcome as Prometheus metrics, and what the parts say of themselves when scraped."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.core.breaker import CircuitState
from proxy.core.entry import Usage
from proxy.core.families import Family
from proxy.core.outcome import Outcome, XCache
from proxy.core.shares import spared_usage
from proxy.core.tally import Durations, Spending
from proxy.stores.base import StoreStats
from proxy.upstream.gate import GateState
from proxy.upstream.pooled_key import KeyState, KeyStatus

# From a hit in memory to an answer of reasoning models that takes minutes.
_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
_BOUNDS = (*map(str, _BUCKETS), "+Inf")


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, in whatever currency the operator counts."""

    prompt_per_million: float
    completion_per_million: float

    def of(self, usage: Usage) -> float:
        """The cost of one answer."""
        return (
            usage.prompt_tokens * self.prompt_per_million
            + usage.completion_tokens * self.completion_per_million
        ) / 1_000_000


@dataclass(frozen=True, slots=True)
class StoreReport:
    """One tier at the time of a scrape."""

    name: str
    available: bool
    stats: StoreStats


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self.registry = CollectorRegistry()
        self._prices = tuple(prices.items())
        # What every request is counted in, a scrape renders; each of these is told rarely enough.
        self._durations: dict[tuple[str, XCache], Durations] = {}
        self._billed, self._saved = Spending(), Spending()
        self.add_collector(self._told)
        self._register_requests()
        self._register_upstreams()
        self._register_stores()

    def _register_requests(self) -> None:
        """What becomes of requests, and of the calls that they share or leave behind."""
        self._items = self._counter(
            "magic_proxy_embedding_items", "Inputs of batches of embeddings.", "result"
        )
        self._bypass = self._counter(
            "magic_proxy_bypass", "Requests for which the cache was not asked.", "reason"
        )
        self._miss = self._counter("magic_proxy_miss", "Look-ups that were no hit.", "reason")
        self._not_stored = self._counter(
            "magic_proxy_not_stored", "Answers that were not stored.", "reason"
        )
        self._incomplete = self._counter(
            "magic_proxy_incomplete_answers",
            "Answers that broke off, by the upstream or by the client.",
            "endpoint",
        )
        self._unattended = self._counter(
            "magic_proxy_unattended_flights",
            "Upstream requests that ended with no client waiting: refreshes, and answers finished "
            "for the store alone.",
            "purpose",
            "end",
        )
        self._collapsed = self._counter(
            "magic_proxy_collapsed_requests",
            "Requests that shared the upstream request of another.",
            "endpoint",
        )
        self._sockets = self._counter(
            "magic_proxy_websockets", "WebSockets that have ended, by how.", "end"
        )

    def _register_upstreams(self) -> None:
        """Who is tried, and who answers."""
        self._attempts = self._counter(
            "magic_proxy_upstream_attempts",
            "Tries of upstreams, retries included.",
            "upstream",
            "result",
        )
        self._withheld = self._counter(
            "magic_proxy_upstream_withheld",
            "Tries of upstreams that were not made.",
            "upstream",
            "reason",
        )
        self._waits = Histogram(
            "magic_proxy_upstream_wait_seconds",
            "How long requests waited in line for an upstream with `max_concurrent`.",
            ("upstream",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._answers = self._counter(
            "magic_proxy_upstream_answers",
            "Answers that clients got from upstreams, by the profile that gave them.",
            "upstream",
            "profile",
            "fallback",
        )

    def _register_stores(self) -> None:
        """What is asked of stores, and goes wrong there."""
        self._store_errors = self._counter(
            "magic_proxy_store_errors", "Failed operations of the store.", "operation"
        )
        self._lookups = self._counter(
            "magic_proxy_store_lookups", "Keys that were looked up in a store.", "store"
        )
        self._round_trips = self._counter(
            "magic_proxy_store_round_trips",
            "Round trips to a store that the look-ups took.",
            "store",
        )
        self._dropped = self._counter(
            "magic_proxy_writes_dropped", "Entries dropped because the write queue was full."
        )
        self._unreadable = self._counter(
            "magic_proxy_entries_unreadable", "Stored bytes that were no readable entry; deleted."
        )
        self._purges = self._counter(
            "magic_proxy_purges", "Purges that this process was asked for.", "kind"
        )

    def told(self, outcome: Outcome) -> None:
        """Count one request."""
        kind = (outcome.endpoint, outcome.x_cache)
        durations = self._durations.get(kind)
        if durations is None:
            durations = self._durations[kind] = Durations(_BUCKETS)
        durations.add(outcome.duration_seconds)
        if outcome.billed is not None:
            self._count_parts(outcome, outcome.billed)
        elif outcome.usage is not None:
            saved = outcome.collapsed or outcome.x_cache in {XCache.HIT, XCache.STALE}
            self._count_usage(outcome.model, outcome.usage, saved=saved)
        if outcome.items is not None:
            self._count_items(outcome, outcome.items)
        if outcome.collapsed:
            self._collapsed.labels(outcome.endpoint).inc()
        if outcome.x_cache is not XCache.HIT:
            self._count_reasons(outcome)
        if outcome.profile is not None and outcome.upstream is not None and not outcome.collapsed:
            fallback = "true" if outcome.fallback else "false"
            self._answers.labels(outcome.upstream, outcome.profile, fallback).inc()

    def told_again(self, outcome: Outcome, request_id: str) -> None:  # noqa: ARG002  # no label
        """Count one repetition of a hit."""
        self.told(outcome)

    def store_failed(self, operation: str) -> None:
        self._store_errors.labels(operation).inc()

    def looked_up(self, store: str, keys: int) -> None:
        self._lookups.labels(store).inc(keys)
        self._round_trips.labels(store).inc()

    def attempted(self, upstream: str, result: str) -> None:
        self._attempts.labels(upstream, result).inc()

    def withheld(self, upstream: str, reason: str) -> None:
        self._withheld.labels(upstream, reason).inc()

    def waited(self, upstream: str, seconds: float) -> None:
        self._waits.labels(upstream).observe(seconds)

    def write_dropped(self) -> None:
        self._dropped.inc()

    def entry_unreadable(self) -> None:
        self._unreadable.inc()

    def purged(self, kind: str) -> None:
        self._purges.labels(kind).inc()

    def finished_unattended(self, purpose: str, end: str, model: str, usage: Usage | None) -> None:
        self._unattended.labels(purpose, end).inc()
        if usage is not None:
            self._count_usage(model, usage, saved=False)

    def add_collector(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Have `collect` asked at each scrape."""
        self.registry.register(_Scraped(collect))

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)

    def families(self) -> list[Family]:
        """The same as values."""
        return [
            Family(
                metric.name,
                metric.type,
                metric.documentation,
                {
                    (sample.name, tuple(sample.labels.items())): sample.value
                    for sample in metric.samples
                },
            )
            for metric in self.registry.collect()
        ]

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _count_reasons(self, outcome: Outcome) -> None:
        if outcome.detail is not None and outcome.x_cache is XCache.BYPASS:
            # The field after the colon is the client's text: no label.
            self._bypass.labels(outcome.detail.partition(":")[0]).inc()
        if outcome.detail is not None and outcome.x_cache is XCache.MISS:
            # After the colon stands how many inputs of a batch were hits.
            self._miss.labels(outcome.detail.partition(":")[0]).inc()
        if outcome.socket_end is not None:
            self._sockets.labels(outcome.socket_end.partition(":")[0]).inc()
        if outcome.not_stored is not None:
            self._not_stored.labels(outcome.not_stored).inc()
        if not outcome.complete:
            self._incomplete.labels(outcome.endpoint).inc()

    def _count_parts(self, outcome: Outcome, billed: Usage) -> None:
        """An answer of which a part was billed, and the rest spared."""
        self._count_usage(outcome.model, billed, saved=False)
        if outcome.usage is not None:
            spared = spared_usage(outcome.usage, billed)
            self._count_usage(outcome.model, spared, saved=True)

    def _count_items(self, outcome: Outcome, items: int) -> None:
        hits, collapsed = outcome.item_hits or 0, outcome.items_collapsed or 0
        for result, count in (
            ("hit", hits),
            ("collapsed", collapsed),
            ("miss", items - hits - collapsed),
        ):
            if count > 0:
                self._items.labels(result).inc(count)

    def _count_usage(self, model: str, usage: Usage, *, saved: bool) -> None:
        price = self._price(model) if self._prices else None
        spending = self._saved if saved else self._billed
        spending.add(usage, None if price is None else price.of(usage))

    def _price(self, model: str) -> Price | None:
        for pattern, price in self._prices:
            if fnmatchcase(model, pattern):
                return price
        return None

    def _told(self) -> Iterable[Metric]:
        labels = ("endpoint", "outcome")
        requests = CounterMetricFamily("magic_proxy_requests", "Requests answered.", labels=labels)
        seconds = HistogramMetricFamily(
            "magic_proxy_request_seconds",
            "Time from the request's last byte to the answer's last byte.",
            labels=labels,
        )
        for (endpoint, x_cache), durations in self._durations.items():
            kind = (endpoint, x_cache.value.lower())
            counts = durations.cumulative
            requests.add_metric(kind, counts[-1])
            seconds.add_metric(kind, list(zip(_BOUNDS, counts, strict=True)), durations.seconds)
        tokens = CounterMetricFamily(
            "magic_proxy_tokens",
            "Tokens that upstreams billed, and that hits saved.",
            labels=("kind", "direction"),
        )
        cost = CounterMetricFamily(
            "magic_proxy_cost", "Cost billed and saved, for models with a price.", labels=("kind",)
        )
        for kind_name, spending in (("billed", self._billed), ("saved", self._saved)):
            tokens.add_metric((kind_name, "prompt"), spending.prompt_tokens)
            tokens.add_metric((kind_name, "completion"), spending.completion_tokens)
            if spending.cost is not None:
                cost.add_metric((kind_name,), spending.cost)
        return (requests, seconds, tokens, cost)


class _Scraped(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: a registry would otherwise scrape at registration."""
        return ()


def rendered(families: Iterable[Family]) -> bytes:
    """Families in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Scraped(lambda: map(_metric, families)))
    return generate_latest(registry)


def _metric(family: Family) -> Metric:
    metric = Metric(family.name, family.documentation, family.kind)
    for (name, labels), value in family.samples.items():
        metric.add_sample(name, dict(labels), value)
    return metric


def store_metrics(reports: Iterable[StoreReport]) -> Iterable[Metric]:
    """The tiers' state as gauges; what a tier can't say is left out."""
    up = GaugeMetricFamily("magic_proxy_store_up", "1 while the tier answers.", labels=["store"])
    entries = GaugeMetricFamily("magic_proxy_store_entries", "Entries held.", labels=["store"])
    held = GaugeMetricFamily("magic_proxy_store_bytes", "Bytes held.", labels=["store"])
    for report in reports:
        up.add_metric([report.name], float(report.available))
        if report.stats.entries is not None:
            entries.add_metric([report.name], report.stats.entries)
        if report.stats.bytes is not None:
            held.add_metric([report.name], report.stats.bytes)
    return (up, entries, held)


def gauge(name: str, documentation: str, value: float) -> Metric:
    """One plain gauge, for a scrape."""
    family = GaugeMetricFamily(name, documentation)
    family.add_metric([], value)
    return family


def counter(name: str, documentation: str, value: float) -> Metric:
    """One plain counter, for a scrape."""
    family = CounterMetricFamily(name, documentation)
    family.add_metric([], value)
    return family


def key_metrics(states: Mapping[str, Iterable[KeyStatus]]) -> Iterable[Metric]:
    """The keys of each upstream's pool, by fingerprint: 1 for the state that each is in."""
    family = GaugeMetricFamily(
        "magic_proxy_upstream_key_state",
        "1 for the state of each upstream key.",
        labels=["upstream", "key", "state"],
    )
    headroom = GaugeMetricFamily(
        "magic_proxy_upstream_key_headroom",
        "Share left of the tightest limit of each upstream key, where one is known.",
        labels=["upstream", "key"],
    )
    for upstream, keys in states.items():
        for key in keys:
            for state in KeyState:
                family.add_metric(
                    [upstream, key.fingerprint, state.value], float(key.state is state)
                )
            if key.headroom is not None:
                headroom.add_metric([upstream, key.fingerprint], key.headroom)
    return (family, headroom)


def circuit_metrics(states: Mapping[str, CircuitState]) -> Iterable[Metric]:
    """The circuit of each upstream: 1 for the state that it is in."""
    family = GaugeMetricFamily(
        "magic_proxy_upstream_circuit_state",
        "1 for the state of the upstream's circuit.",
        labels=["upstream", "state"],
    )
    for upstream, current in states.items():
        for state in CircuitState:
            family.add_metric([upstream, state.value], float(state is current))
    return (family,)


def gate_metrics(states: Mapping[str, GateState]) -> Iterable[Metric]:
    """How full each upstream with a limit of requests is."""
    in_use = GaugeMetricFamily(
        "magic_proxy_upstream_slots_in_use",
        "Requests under way at an upstream with `max_concurrent`.",
        labels=["upstream"],
    )
    waiting = GaugeMetricFamily(
        "magic_proxy_upstream_waiting",
        "Requests that wait in line for an upstream with `max_concurrent`.",
        labels=["upstream"],
    )
    for upstream, state in states.items():
        in_use.add_metric([upstream], state.in_use)
        waiting.add_metric([upstream], state.waiting)
    return (in_use, waiting)
