"""The counters of a proxy at one moment."""

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Scrape:
    """The counters of one proxy at one moment, by name and labels."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def parse(cls, text: str) -> "Scrape":
        """From the text format of Prometheus."""
        return cls(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series of a metric that have these labels."""
        wanted = set(labels.items())
        return sum(
            value for (each, has), value in self.samples.items() if each == name and wanted <= has
        )
