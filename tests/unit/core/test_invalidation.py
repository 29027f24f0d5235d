"""Events: targets, the places that the context fills, and cascades (B54)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.invalidation import Event, Events, Target, TargetKind
from proxy.core.purge import BadPurge, Purge
from proxy.core.selectors import Selector
from proxy.core.wire import JsonValue

PREFIX = "magic_proxy:cache:"
DIGEST = "0123456789abcdef" * 4


def event(name: str, *targets: str, soft: bool = False) -> Event:
    return Event(name, tuple(map(Target.parse, targets)), soft)


def purges(events: Events, name: str, /, **context: JsonValue) -> list[Purge]:
    return events.purges(name, context, key_prefix=PREFIX)


def fired(*targets: str, **context: JsonValue) -> list[Purge]:
    return purges(Events([event("e", *targets)]), "e", **context)


@pytest.mark.parametrize(
    ("target", "purge"),
    [
        ("model:{m}", Purge(Selector(model="gpt-4o"))),
        ("model:{m}-mini", Purge(Selector(model="gpt-4o-mini"))),
        ("tag:project:{p}", Purge(Selector(tag="project:a"))),
        ("tag:{p}:{m}", Purge(Selector(tag="a:gpt-4o"))),
        ("tag:number:{n}", Purge(Selector(tag="number:1"))),
        ("tag:{yes}", Purge(Selector(tag="true"))),
        ("rule:chat", Purge(Selector(rule="chat"))),
        ("tenant:{p}", Purge(Selector(tenant="a"))),
        ("endpoint:embeddings", Purge(Selector(endpoint="embeddings"))),
        ("all", Purge(Selector())),
        ("older_than:3600", Purge(Selector(), older_than_seconds=3600.0)),
        ("older_than:{n}", Purge(Selector(), older_than_seconds=1.0)),
        (f"key:{DIGEST}", Purge(Selector(digest=DIGEST))),
        (
            "key:{key}",
            Purge(
                Selector(digest=DIGEST, endpoint="chat"),
                store_key=f"{PREFIX}v1:chat:shared:{DIGEST}",
            ),
        ),
    ],
)
def test_B54_a_target_is_filled_from_the_context(target: str, purge: Purge) -> None:
    key = f"{PREFIX}v1:chat:shared:{DIGEST}"
    assert fired(target, m="gpt-4o", p="a", n=1.0, yes=True, key=key, unused={}) == [purge]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must start with one of: key, rule, model, tag"),
        ("gpt-4o", "must start with one of"),
        ("modle:{m}", "must start with one of"),
        ("Model:{m}", "must start with one of"),
        ("{m}:a", "must start with one of"),
        ("model", "must name what to purge: model:…"),
        ("model:", "must name what to purge"),
        ("model: ", "must name what to purge"),
        ("all:", "takes no value"),
        ("all:{m}", "takes no value"),
        ("model:{", "a place is a name in braces"),
        ("model:{}", "a place is a name in braces"),
        ("model:{a b}", "a place is a name in braces"),
        ("model:a}", "a place is a name in braces"),
        ("model:{{m}}", "a place is a name in braces"),
        ("event:{name}", "has no places"),
    ],
)
def test_B54_what_is_no_target_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Target.parse(text)


@pytest.mark.parametrize(
    ("target", "context", "member", "words"),
    [
        ("model:{m}", {}, "m", "lacks 'm'"),
        ("model:{m}", {"m": None}, "m", "lacks 'm'"),
        ("model:{m}", {"m": ["a"]}, "m", "must be a text"),
        ("model:{m}", {"m": {"a": 1}}, "m", "must be a text"),
        ("model:{m}", {"m": ""}, "m", "must not be empty"),
        ("tag:project:{m}", {"m": "  "}, "m", "must not be empty"),
        ("endpoint:{m}", {"m": "images"}, "endpoint", "chat, embeddings"),
        ("older_than:{m}", {"m": "long ago"}, "older_than", "number of seconds"),
        ("older_than:{m}", {"m": -1}, "older_than_seconds", "0 or more"),
        ("older_than:{m}", {"m": "nan"}, "older_than_seconds", "0 or more"),
        ("key:{m}", {"m": "abc"}, "key", "64 hexadecimal digits"),
    ],
)
def test_B54_a_context_that_does_not_fit_is_refused_by_name(
    target: str, context: dict[str, JsonValue], member: str, words: str
) -> None:
    with pytest.raises(BadPurge, match=words) as caught:
        Events([event("e", "rule:chat", target)]).purges("e", context, key_prefix=PREFIX)
    assert caught.value.member == member


def test_B54_a_cascade_purges_what_all_its_events_do_once_each_in_its_own_way() -> None:
    events = Events(
        [
            event("top", "tag:t:{t}", "event:left", "event:right"),
            event("left", "model:{m}", "event:bottom", soft=True),
            event("right", "event:bottom", "model:{m}"),
            event("bottom", "rule:chat"),
        ]
    )
    model, rule, tag = Selector(model="m"), Selector(rule="chat"), Selector(tag="t:1")
    assert purges(events, "bottom") == [Purge(rule)]
    assert purges(events, "left", m="m") == [Purge(model, soft=True), Purge(rule)]
    got = purges(events, "top", t="1", m="m")
    assert len(got) == 4
    assert set(got) == {Purge(tag), Purge(model, soft=True), Purge(model), Purge(rule)}


def test_B54_targets_that_come_to_the_same_are_one_purge() -> None:
    assert fired("model:{a}", "model:{b}", a="m", b="m") == [Purge(Selector(model="m"))]


def test_B54_a_dry_run_is_one_for_every_target() -> None:
    events = Events([event("e", "model:a", "all")])
    dry = events.purges("e", {}, key_prefix=PREFIX, dry_run=True)
    assert [purge.dry_run for purge in dry] == [True, True]


def test_B54_a_long_chain_and_a_wide_cascade_are_resolved() -> None:
    chain = [event(f"e{i}", f"event:e{i + 1}", f"rule:r{i}") for i in range(150)]
    wide = [
        event(f"w{i}", *(f"event:w{j}" for j in range(i + 1, 30)), f"model:m{i}") for i in range(30)
    ]
    events = Events([*chain, event("e150", "rule:last"), *wide])
    assert len(purges(events, "e0")) == 151
    assert len(purges(events, "w0")) == 30


def test_events_know_their_names() -> None:
    events = Events([event("a", "all"), event("b", "event:a")])
    assert "a" in events
    assert "c" not in events
    assert list(events) == ["a", "b"]


@given(st.text(max_size=30) | st.sampled_from(list(TargetKind)).map(lambda kind: f"{kind}:{{x}}"))
def test_B54_any_text_is_a_target_or_a_value_error(text: str) -> None:
    try:
        target = Target.parse(text)
    except ValueError:
        return
    assert target.kind is TargetKind.EVENT or len(target.places) <= len(text)
