"""`invalidation`: short and long form, and every mistake at its place (B54, B74)."""

from pathlib import Path

import pytest

from proxy.core.purge import Purge
from proxy.core.selectors import Selector
from proxy.errors import Mistake, SettingsError
from proxy.settings.invalidation import compile_events
from proxy.settings.load import load_settings

PREFIX = "magic_proxy:cache:"

# What is written, with » before the mistake; which setting it names; words of the message.
MISTAKES = [
    pytest.param("invalidation: {e: [»'modle:{m}']}", "invalidation.e[0]", ["one of: key, rule, model"], id="kind"),
    pytest.param("invalidation: {e: {targets: [all, »'model:{']}}", "invalidation.e.targets[1]", ["name in braces"], id="braces"),
    pytest.param("invalidation: {e: [all, »'event:f']}", "invalidation.e[1]", ["no event `f`", "known: e"], id="unknown-event"),
    pytest.param("invalidation: {modelup: [all], e: {targets: [»'event:model_up']}}", "invalidation.e.targets[0]", ["did you mean `modelup`"], id="unknown-event-long"),
    pytest.param("invalidation: {e: [»'event:e']}", "invalidation.e[0]", ["the events go round: e → e"], id="itself"),
    pytest.param("invalidation:\n  a: ['event:b']\n  b: {targets: [all, 'event:c']}\n  c:\n    - rule:x\n    - »event:a", "invalidation.c[1]", ["a → b → c → a"], id="circle"),
    pytest.param("invalidation: {e: [»'endpoint:images']}", "invalidation.e[0]", ["chat, embeddings"], id="endpoint"),
    pytest.param("invalidation: {e: [»'older_than:soon']}", "invalidation.e[0]", ["number of seconds"], id="older-than"),
    pytest.param("invalidation: {e: {targets: [»'key:abc']}}", "invalidation.e.targets[0]", ["64 hexadecimal digits"], id="key"),
    pytest.param("invalidation: {e: [»'model:']}", "invalidation.e[0]", ["must name what to purge"], id="no-value"),
    pytest.param("invalidation: {e: »[]}", "invalidation.e", ["must not be empty"], id="no-targets"),
    pytest.param("invalidation: {e: »{}}", "invalidation.e.targets", ["is required"], id="nothing"),
    pytest.param("invalidation: {e: »all}", "invalidation.e", ["must be a mapping"], id="text"),
    pytest.param("invalidation: {e: {targets: [all], »hard: true}}", "invalidation.e.hard", ["no such setting", "soft, targets"], id="unknown-setting"),
    pytest.param("invalidation: {e: {targets: [all], soft: »very}}", "invalidation.e.soft", ["true or false"], id="soft"),
    pytest.param("invalidation: {»'a/b': [all]}", 'invalidation["a/b"]', ["letters, digits"], id="name"),
    pytest.param("invalidation: {e: [»5]}", "invalidation.e[0]", ["text"], id="number"),
]  # fmt: skip


def mistakes_in(text: str, tmp_path: Path) -> list[Mistake]:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    return caught.value.mistakes


@pytest.mark.parametrize(("text", "path", "words"), MISTAKES)
def test_B74_a_mistake_in_an_event_names_its_place(
    text: str, path: str, words: list[str], tmp_path: Path
) -> None:
    before = text[: text.index("»")]
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    [mistake] = mistakes_in(text.replace("»", ""), tmp_path)
    assert (mistake.line, mistake.column, mistake.path) == (line, column, path)
    for word in words:
        assert word in mistake.message


def test_B74_each_circle_is_told_once(tmp_path: Path) -> None:
    text = "invalidation: {a: ['event:b'], b: ['event:a'], c: ['event:a', 'event:d'], d: [event:c]}"
    told = [mistake.message for mistake in mistakes_in(text, tmp_path)]
    assert told == ["the events go round: a → b → a", "the events go round: c → d → c"]


def test_B54_both_forms_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "invalidation:\n"
        "  model_updated: ['model:{model}']\n"
        "  project_closed:\n"
        "    targets: ['tag:project:{project}', 'event:model_updated']\n"
        "    soft: true\n"
    )
    events = compile_events(load_settings(file, {}).invalidation)
    context = {"model": "m", "project": "p"}
    assert events.purges("model_updated", context, key_prefix=PREFIX) == [
        Purge(Selector(model="m"))
    ]
    assert events.purges("project_closed", context, key_prefix=PREFIX) == [
        Purge(Selector(tag="project:p"), soft=True),
        Purge(Selector(model="m")),
    ]


def test_B54_a_key_of_another_prefix_is_a_mistake(tmp_path: Path) -> None:
    key = f"key:other:v1:chat:shared:{'0' * 64}"
    text = f"invalidation: {{e: ['{key}']}}\ncache_settings: {{key_prefix: '{{}}'}}"
    [mistake] = mistakes_in(text.replace("{}", "mine:"), tmp_path)
    assert "starts with mine:" in mistake.message
    file = tmp_path / "settings.yaml"
    file.write_text(text.replace("{}", "other:"))
    assert load_settings(file, {}).invalidation["e"].targets == (key,)
