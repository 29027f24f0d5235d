"""A batch's outcome, as counts and as a log line: what was billed and what was spared add up."""

import io
from typing import Any

import orjson

from proxy.core.entry import Usage
from proxy.core.outcome import Forwarded, MissReason, Outcome, XCache
from proxy.metrics import Metrics
from proxy.request_log import RequestLog
from tests.fakes import FakeClock


def outcome(**members: Any) -> Outcome:
    return Outcome(
        x_cache=XCache.MISS,
        endpoint="embeddings",
        forwarded=Forwarded.MISS,
        usage=Usage(100, 0, 100),
        items=10,
        **members,
    )


def samples(*outcomes: Outcome) -> dict[str, float]:
    metrics = Metrics({})
    for each in outcomes:
        metrics.told(each)
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.value
    }


def test_B16_what_was_billed_and_what_was_spared_are_separate() -> None:
    found = samples(outcome(billed=Usage(30, 0, 30), item_hits=6, items_collapsed=1))
    assert found["magic_proxy_tokens_total billed prompt"] == 30
    assert found["magic_proxy_tokens_total saved prompt"] == 70
    assert found["magic_proxy_embedding_items_total hit"] == 6
    assert found["magic_proxy_embedding_items_total collapsed"] == 1
    assert found["magic_proxy_embedding_items_total miss"] == 3


def test_B16_a_hit_was_spared_as_a_whole() -> None:
    hit = Outcome(XCache.HIT, "embeddings", usage=Usage(7, 0, 7), items=2, item_hits=2)
    found = samples(hit)
    assert found["magic_proxy_tokens_total saved prompt"] == 7
    assert "magic_proxy_tokens_total billed prompt" not in found
    assert "magic_proxy_embedding_items_total miss" not in found


def test_B12_how_many_were_hits_is_no_label() -> None:
    told = [outcome(detail=f"{MissReason.PARTIAL.value}:{hits}/10") for hits in (1, 2)]
    assert samples(*told)["magic_proxy_miss_total partial"] == 2


def test_B12_the_log_tells_items_and_hits() -> None:
    stream = io.BytesIO()
    log = RequestLog(stream, FakeClock())
    log.told(outcome(item_hits=0, detail="partial:1/10"))
    log.flush()
    line = orjson.loads(stream.getvalue())
    assert (line["items"], line["item_hits"], line["detail"]) == (10, 0, "partial:1/10")
