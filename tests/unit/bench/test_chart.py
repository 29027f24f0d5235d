"""The chart is well-formed, to scale, and needs nothing from elsewhere."""

import re
from xml.etree import ElementTree as ET

import pytest

from bench.chart import LABELS, VALUES, WIDTH, Bar, decades, length, svg

BARS = [
    Bar("nginx, a <fixed> answer", "nginx", 98_000, 10),
    Bar("hot", "ours", 65_000, 14),
    Bar("LiteLLM's proxy", "others", 70, 13_000),
]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("rates", "held"), [([98_000, 70], (1, 5)), ([100, 1_000], (2, 3)), ([150], (2, 3))]
)
def test_the_scale_holds_all_rates(rates: list[float], held: tuple[int, int]) -> None:
    assert decades(rates) == held


def test_ten_times_the_rate_is_one_step_more() -> None:
    steps = [length(rate, 1, 5) for rate in (10.0, 100.0, 1_000.0, 100_000.0)]
    assert steps[0] == 0.0
    assert steps[2] == pytest.approx(2 * steps[1])
    assert steps[3] == pytest.approx(WIDTH - LABELS - VALUES)


def test_every_bar_is_drawn_with_its_name_and_figures() -> None:
    root = ET.fromstring(svg("Title", "below", BARS, ours="ours", limit="nginx"))
    ground, *bars = root.findall(f"{SVG}rect")
    assert ground.get("class") == "ground"
    assert [bar.get("class") for bar in bars] == ["limit", "ours", "other"]
    assert float(bars[0].get("width", "0")) > float(bars[1].get("width", "0")) > 0
    texts = ["".join(text.itertext()) for text in root.findall(f"{SVG}text")]
    assert {"Title", "nginx, a <fixed> answer", "LiteLLM's proxy", "98,000/s 10 µs"} <= set(texts)


def test_nothing_is_fetched_and_nothing_runs() -> None:
    drawn = svg("Title", "below", BARS, ours="ours", limit="nginx")
    assert not re.search(r"script|href|url\(|@import|@font-face", drawn)
