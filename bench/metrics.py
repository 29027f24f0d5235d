"""What the proxy counts of itself."""

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bench.processes import Running, get


def samples(server: Running) -> Iterator[Sample]:
    """All samples of `/metrics`, now."""
    for family in text_string_to_metric_families(get(server, "/metrics").decode()):
        yield from family.samples


def gauge(server: Running, name: str) -> float:
    """The largest sample of a gauge."""
    return max(sample.value for sample in samples(server) if sample.name == name)
