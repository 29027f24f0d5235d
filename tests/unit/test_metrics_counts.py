"""Outcomes as counts: each once, under its own labels, and no client's text among them."""

from collections.abc import Iterable

import pytest
from prometheus_client import Histogram
from prometheus_client.metrics_core import Metric

from proxy.core.entry import Usage
from proxy.core.outcome import BypassReason, MissReason, Outcome, XCache
from proxy.core.recording import NotStored
from proxy.metrics import _BUCKETS, Metrics, Price, StoreReport, gauge, store_metrics
from proxy.stores.base import StoreStats

USAGE = Usage(prompt_tokens=1_000, completion_tokens=10, total_tokens=1_010)


def outcome(x_cache: XCache = XCache.MISS, **members: object) -> Outcome:
    return Outcome(x_cache=x_cache, endpoint="chat", **members)  # type: ignore[arg-type]


def counted(*outcomes: Outcome, prices: dict[str, Price] | None = None) -> dict[str, float]:
    """Every sample that is not 0 once the outcomes were told, without buckets and times."""
    metrics = Metrics(prices or {})
    for each in outcomes:
        metrics.told(each)
    return samples(metrics)


def samples(metrics: Metrics) -> dict[str, float]:
    return {
        f"{sample.name.removeprefix('magic_proxy_')} {' '.join(sample.labels.values())}".strip(): (
            sample.value
        )
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.value and not sample.name.endswith(("_bucket", "_created"))
    }


def test_look_ups_and_their_round_trips_count_for_each_store() -> None:
    metrics = Metrics({})
    for store, keys in (("redis", 3), ("redis", 1), ("disk", 2)):
        metrics.looked_up(store, keys)
    assert samples(metrics) == {
        "store_lookups_total redis": 4,
        "store_round_trips_total redis": 2,
        "store_lookups_total disk": 2,
        "store_round_trips_total disk": 1,
    }


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        pytest.param(outcome(XCache.HIT), {}, id="hit"),
        pytest.param(outcome(XCache.STALE), {}, id="stale"),
        pytest.param(outcome(detail="absent"), {"miss_total absent": 1}, id="miss"),
        pytest.param(outcome(XCache.ERROR, detail="not_cached"), {}, id="error"),
        pytest.param(
            outcome(XCache.BYPASS, detail="no-rule"), {"bypass_total no-rule": 1}, id="bypass"
        ),
        pytest.param(
            outcome(detail="expired", not_stored="status"),
            {"miss_total expired": 1, "not_stored_total status": 1},
            id="not-stored",
        ),
        pytest.param(
            outcome(XCache.BYPASS, complete=False),
            {"incomplete_answers_total chat": 1},
            id="broke-off",
        ),
        pytest.param(
            outcome(XCache.ERROR, detail="client-gone", complete=False),
            {"incomplete_answers_total chat": 1},
            id="client-gone",
        ),
    ],
)
def test_B12_an_outcome_is_counted_once_for_what_it_is(
    told: Outcome, expected: dict[str, float]
) -> None:
    request = f"chat {told.x_cache.value.lower()}"

    assert counted(told) == {
        f"requests_total {request}": 1,
        f"request_seconds_count {request}": 1,
        **expected,
    }


def test_B12_endpoints_and_outcomes_have_counts_of_their_own() -> None:
    hit, miss = outcome(XCache.HIT), outcome()
    other = Outcome(x_cache=XCache.HIT, endpoint="embeddings", duration_seconds=0.5)

    told = counted(hit, hit, miss, other)

    assert told["requests_total chat hit"] == told["request_seconds_count chat hit"] == 2
    assert told["requests_total chat miss"] == 1
    assert told["requests_total embeddings hit"] == 1
    assert told["request_seconds_sum embeddings hit"] == 0.5


@pytest.mark.parametrize("reason", list(MissReason))
def test_B12_every_miss_is_counted_under_its_reason(reason: MissReason) -> None:
    assert counted(outcome(detail=reason.value))[f"miss_total {reason.value}"] == 1


@pytest.mark.parametrize("field", ["", ":tools", ":a:b", ":" + "x" * 80, ':"\n{}'])
@pytest.mark.parametrize("reason", list(BypassReason))
def test_B12_a_field_s_name_is_the_client_s_text_and_no_label(
    reason: BypassReason, field: str
) -> None:
    told = counted(outcome(XCache.BYPASS, detail=reason.value + field))

    assert [name for name in told if name.startswith("bypass")] == [f"bypass_total {reason.value}"]


@pytest.mark.parametrize("reason", list(NotStored))
def test_B14_what_is_not_stored_is_counted_with_its_reason(reason: NotStored) -> None:
    told = counted(outcome(XCache.BYPASS, not_stored=reason.value))

    assert told[f"not_stored_total {reason.value}"] == 1


@pytest.mark.parametrize(
    ("x_cache", "kind"),
    [
        (XCache.HIT, "saved"),
        (XCache.STALE, "saved"),
        (XCache.MISS, "billed"),
        (XCache.BYPASS, "billed"),
    ],
)
def test_B16_tokens_and_cost_are_billed_or_saved(x_cache: XCache, kind: str) -> None:
    told = counted(outcome(x_cache, model="m", usage=USAGE), prices={"m": Price(2.0, 100.0)})

    assert {name: value for name, value in told.items() if name.startswith(("tokens", "cost"))} == {
        f"tokens_total {kind} prompt": 1_000,
        f"tokens_total {kind} completion": 10,
        f"cost_total {kind}": pytest.approx(0.003),
    }


@pytest.mark.parametrize(
    ("model", "cost"),
    [
        ("gpt-4o-mini", 1.0),
        ("gpt-4o-2024", 2.0),
        ("gpt-5", 3.0),
        ("GPT-5", None),
        ("claude", None),
        ("", None),
    ],
)
def test_B16_the_first_pattern_that_fits_gives_the_price(model: str, cost: float | None) -> None:
    prices = {name: Price(price * 1_000, 0.0) for name, price in PRICES.items()}

    told = counted(outcome(model=model, usage=USAGE), prices=prices)

    assert told.get("cost_total billed") == (None if cost is None else pytest.approx(cost))


PRICES = {"gpt-4o-mini": 1.0, "gpt-4o*": 2.0, "gpt-*": 3.0, "gpt-5": 9.0}


def test_B16_no_usage_no_tokens() -> None:
    told = counted(outcome(model="m"), prices={"*": Price(1.0, 1.0)})

    assert not [name for name in told if name.startswith(("tokens", "cost"))]


def test_B50_B53_what_the_storage_came_to_is_counted() -> None:
    metrics = Metrics({})
    metrics.store_failed("get")
    metrics.store_failed("get")
    metrics.store_failed("put")
    metrics.write_dropped()
    metrics.entry_unreadable()
    metrics.attempted("main", "answered")

    assert samples(metrics) == {
        "store_errors_total get": 2,
        "store_errors_total put": 1,
        "writes_dropped_total": 1,
        "entries_unreadable_total": 1,
        "upstream_attempts_total main answered": 1,
    }


def test_tiers_say_what_they_can_when_scraped() -> None:
    metrics = Metrics({})
    reports: list[StoreReport] = []
    metrics.add_collector(lambda: store_metrics(reports))
    metrics.add_collector(lambda: [gauge("magic_proxy_queue", "Held.", 3)])
    reports += [
        StoreReport("memory", True, StoreStats(entries=2, bytes=99)),
        StoreReport("redis", False, StoreStats()),
    ]

    assert samples(metrics) == {
        "store_up memory": 1,
        "store_entries memory": 2,
        "store_bytes memory": 99,
        "queue": 3,
    }
    text = metrics.exposition().decode()
    assert 'magic_proxy_store_up{store="redis"} 0.0' in text
    assert 'magic_proxy_store_entries{store="redis"}' not in text


def test_B16_a_repetition_counts_as_the_hit_that_it_repeats() -> None:
    metrics, other = Metrics({"m": Price(2.0, 100.0)}), Metrics({"m": Price(2.0, 100.0)})
    hit = outcome(XCache.HIT, model="m", usage=USAGE)
    for number in range(5):
        metrics.told_again(hit, f"req_{number}")
        other.told(hit)

    assert samples(metrics) == samples(other)
    assert samples(metrics)["requests_total chat hit"] == 5


def test_B12_durations_stand_in_the_buckets_of_prometheus() -> None:
    """As prometheus_client's own histogram puts them: up to a bound and including it."""
    seconds = [0.0, 0.0001, 0.00011, 0.05, 1.0, 299.0, 300.0, 301.0]
    metrics = Metrics({})
    for each in seconds:
        metrics.told(outcome(XCache.HIT, duration_seconds=each))
    own = Histogram("own", "", ("endpoint", "outcome"), buckets=_BUCKETS, registry=None)
    for each in seconds:
        own.labels("chat", "hit").observe(each)

    def told(collector: Iterable[Metric]) -> dict[tuple[str, str], float]:
        return {
            (sample.name.rpartition("_")[2], sample.labels.get("le", "")): sample.value
            for family in collector
            for sample in family.samples
            if sample.name.startswith(("own_", "magic_proxy_request_seconds"))
            and not sample.name.endswith("_created")
        }

    assert told(metrics.registry.collect()) == told(own.collect())
