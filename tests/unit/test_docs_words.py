"""The documentation and the code use the same words: metrics, reasons, commands, links."""

import ast
import re
from enum import StrEnum
from pathlib import Path

import pytest
import yaml

from proxy.core.outcome import BypassReason, MissReason, XCache
from proxy.core.recording import NotStored

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# ---- metrics ----


def metrics_in_code() -> set[str]:
    """The names that the code gives to metrics; counters get `_total` at exposition."""
    return {
        node.value
        for path in (ROOT / "proxy").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"magic_proxy_[a-z_]+", node.value)
    }


def metrics_named_in(page: str) -> set[str]:
    names = re.findall(r"\bmagic_proxy_[a-z_]+[a-z]\b", page)
    return {re.sub(r"_(total|bucket)$", "", name) for name in names}


def test_operations_lists_every_metric_and_no_other() -> None:
    assert metrics_named_in(text("docs/operations.md")) == metrics_in_code()


@pytest.mark.parametrize("name", ["deploy/prometheus/alerts.yml", "README.md"])
def test_metrics_named_elsewhere_exist(name: str) -> None:
    assert metrics_named_in(text(name)) <= metrics_in_code()


def test_alerts_have_what_an_operator_reads_first() -> None:
    (group,) = yaml.safe_load(text("deploy/prometheus/alerts.yml"))["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert rule["for"]


# ---- reasons ----


def section(page: str, start: str, end: str) -> str:
    return page[page.index(start) : page.index(end) if end else len(page)]


@pytest.mark.parametrize(
    ("reasons", "start", "end"),
    [
        (MissReason, "`MISS`: the cache", "`BYPASS`: the cache"),
        (BypassReason, "`BYPASS`: the cache", "`not-stored:…` in"),
        (NotStored, "`not-stored:…` in", "`ERROR`: the proxy"),
    ],
    ids=["miss", "bypass", "not-stored"],
)
def test_operations_explains_every_reason(reasons: type[StrEnum], start: str, end: str) -> None:
    part = section(text("docs/operations.md"), start, end)
    first_cells = re.findall(r"^\| (`.+?) \|", part, re.MULTILINE)
    explained = {
        name.removesuffix(":…") for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)
    }
    assert explained - {"detail"} == {str(reason) for reason in reasons}


def test_readme_names_every_value_of_x_cache() -> None:
    page = text("README.md")
    assert all(f"`{value}`" in page for value in XCache)


# ---- links ----


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    content = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", content):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_named_in_the_docs_exist(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:deploy|scripts|docs|tests|requirements)/[\w./-]+?)/?`", content)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []
