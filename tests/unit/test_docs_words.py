"""The documentation and the code use the same words: metrics, reasons, commands, links."""

import ast
import json
import re
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from proxy.cli.main import app
from proxy.core.outcome import BypassReason, MissReason, XCache
from proxy.core.recording import NotStored
from proxy.settings.lint import Severity, lint
from proxy.settings.load import load

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


@cache
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


# ---- commands ----


def commands() -> dict[str, set[str]]:
    """The options of each command."""
    group: Any = typer.main.get_command(app)
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }


def code_spans(page: Path) -> list[str]:
    return re.findall(r"```.*?```|`[^`\n]+`", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_in_the_docs_exist_with_their_options(page: Path) -> None:
    known = commands()
    for span in code_spans(page):
        for name, rest in re.findall(r"magic-proxy ([a-z][a-z-]*)([^\n|]*)", span):
            if name in {"and", "in", "is"}:
                continue
            assert name in known, (name, rest)
            options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)
            assert set(options) <= known[name], (name, options)


def test_operations_lists_every_command() -> None:
    named = re.findall(r"^\| `magic-proxy ([a-z-]+)", text("docs/operations.md"), re.MULTILINE)
    assert sorted(named) == sorted(commands())


def test_the_image_and_the_unit_start_a_command_that_exists() -> None:
    known = commands()
    command = re.search(r"^CMD (\[.*\])$", text("Dockerfile"), re.MULTILINE)
    assert command is not None
    name, *rest = json.loads(command[1])
    assert {word for word in rest if word.startswith("--")} <= known[name]
    unit = text("deploy/systemd/magic-proxy.service")
    for name, options in re.findall(r"^ExecStart(?:Pre)?=\S+ (\S+)(.*)$", unit, re.MULTILINE):
        assert set(re.findall(r"--[a-z-]+", options)) <= known[name]


# ---- settings shown as examples ----


def settings_examples() -> list[tuple[str, str]]:
    """YAML blocks of the docs that are settings, and the settings of the Kubernetes example."""
    found = [
        (f"{page.name}-{number}", block)
        for page in PAGES
        for number, block in enumerate(
            re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL), start=1
        )
        if page.name != "configuration.md"
    ]
    config_map = next(yaml.safe_load_all(text("deploy/kubernetes/magic-proxy.yaml")))
    return [*found, ("kubernetes", config_map["data"]["proxy_config.yaml"])]


@pytest.mark.parametrize(
    "content", [pytest.param(content, id=name) for name, content in settings_examples()]
)
def test_settings_shown_as_examples_are_valid(content: str, tmp_path: Path) -> None:
    file = tmp_path / "proxy_config.yaml"
    file.write_text(content.replace("sha256:…", "sha256:" + "0" * 64), encoding="utf-8")
    loaded = load(file, {"OPENAI_API_KEY": "sk-made-up"})
    findings = lint(loaded.settings, loaded.place_of)
    assert [finding for finding in findings if finding.severity is Severity.WARNING] == []
