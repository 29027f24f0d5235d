"""Rules: which one wins, and in words why another does not."""

from typing import Any

import pytest

from proxy.core.canonical import parse_body
from proxy.core.matching import _MEMO_SIZE, RuleSet, why_not
from proxy.core.request import CacheableRequest
from proxy.core.rules import Rule, When
from proxy.core.wire import Endpoint
from tests.vectors.rules import rule_of


def rule(name: str = "r", when: When | None = None, **given: Any) -> Rule:
    return rule_of({"name": name, "include_in_key": ["*"], **given}, when)


def asked(
    body: str = "{}",
    *,
    model: str = "gpt-4o",
    endpoint: Endpoint = Endpoint.CHAT,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> CacheableRequest:
    return CacheableRequest(endpoint, model, parse_body(body.encode()).fields, headers=headers)


def winner(request: CacheableRequest, *rules: Rule) -> str | None:
    found = RuleSet(rules).match(request)
    return None if found is None else found.name


def test_B9_the_first_rule_that_matches_wins() -> None:
    rules = (
        rule("other-model", model_names=["claude"]),
        rule("other-endpoint", endpoints=["embeddings"]),
        rule("too-warm", When(max_temperature=0.5)),
        rule("first"),
        rule("second", model_names=["gpt-4o"]),
    )
    assert winner(asked(), *rules) == "first"
    assert winner(asked(model="claude"), *rules) == "other-model"
    assert winner(asked('{"temperature":0.5}'), *rules) == "too-warm"
    assert winner(asked(endpoint=Endpoint.EMBEDDINGS), *rules) == "other-endpoint"


def test_B9_no_rule_no_match() -> None:
    assert winner(asked()) is None
    assert winner(asked(), rule(model_names=["gpt-4"])) is None


@pytest.mark.parametrize(
    ("names", "model", "matches"),
    [
        (["gpt-4o"], "gpt-4o", True),
        (["a", "gpt-4o"], "gpt-4o", True),
        (["gpt-4"], "gpt-4o", False),
        (["gpt-4*"], "gpt-4o-mini", True),
        (["gpt-?o"], "gpt-4o", True),
        (["gpt-[34]"], "gpt-4", True),
        (["gpt-[34]"], "gpt-[34]", True),
        (["*"], "", True),
        (["GPT-4o"], "gpt-4o", False),
        (["*/llama*"], "meta/llama-3", True),
    ],
)
def test_B9_model_names_are_exact_or_globs(names: list[str], model: str, matches: bool) -> None:
    assert (winner(asked(model=model), rule(model_names=names)) is not None) is matches


@pytest.mark.parametrize(
    ("limit", "body", "matches"),
    [
        (0.0, '{"temperature":0}', True),
        (0.0, '{"temperature":-0.0}', True),
        (0.0, '{"temperature":0.1}', False),
        (0.5, '{"temperature":0.5}', True),
        (1.0, "{}", True),
        (0.99, "{}", False),
        (1.0, '{"temperature":null}', True),
        (0.99, '{"temperature":null}', False),
        (2.0, '{"temperature":"0"}', False),
        (2.0, '{"temperature":true}', False),
        (2.0, '{"temperature":[0]}', False),
        (2.0, '{"temperature":1' + "0" * 700 + "}", False),
        (2.0, '{"temperature":-1' + "0" * 700 + "}", True),
    ],
)
def test_B9_max_temperature(limit: float, body: str, matches: bool) -> None:
    found = winner(asked(body), rule(when=When(max_temperature=limit)))
    assert (found is not None) is matches


@pytest.mark.parametrize(
    ("when", "body", "matches"),
    [
        (When(max_messages=2), '{"messages":[{},{}]}', True),
        (When(max_messages=2), '{"messages":[{},{},{}]}', False),
        (When(max_messages=2), "{}", True),
        (When(max_messages=2), '{"messages":"hi"}', False),
        (When(has_user_message=True), '{"messages":[{"role":"system"},{"role":"user"}]}', True),
        (When(has_user_message=True), '{"messages":[{"role":"system"}]}', False),
        (When(has_user_message=True), '{"messages":["user",null]}', False),
        (When(has_user_message=True), "{}", False),
        (When(has_user_message=True), '{"messages":{"role":"user"}}', False),
        (When(has_user_message=False), '{"messages":[{"role":"user"}]}', False),
        (When(has_user_message=False), '{"messages":[{"role":"system"}]}', True),
        (When(has_user_message=True, max_messages=1), '{"messages":[{"role":"user"},{}]}', False),
        (When(max_temperature=0.0, max_messages=1), '{"messages":[{}]}', False),
    ],
)
def test_B9_message_predicates(when: When, body: str, matches: bool) -> None:
    assert (winner(asked(body), rule(when=when)) is not None) is matches


@pytest.mark.parametrize(
    ("headers", "matches"),
    [
        (((b"x-env", b"prod-eu"),), True),
        (((b"x-env", b"dev"),), False),
        (((b"x-env", b"PROD-eu"),), False),
        (((b"x-env", b"dev"), (b"x-env", b"prod-1")), True),
        ((), False),
        (((b"x-envy", b"prod-eu"),), False),
    ],
)
def test_B9_headers_are_matched_by_glob(
    headers: tuple[tuple[bytes, bytes], ...], matches: bool
) -> None:
    conditional = rule(when=When(headers=(("X-Env", "prod-*"),)))
    assert (winner(asked(headers=headers), conditional) is not None) is matches


def test_B9_all_headers_must_match() -> None:
    conditional = rule(when=When(headers=(("a", "1"), ("b", "*"))))
    assert winner(asked(headers=((b"a", b"1"),)), conditional) is None
    assert winner(asked(headers=((b"a", b"1"), (b"b", b""))), conditional) == "r"


@pytest.mark.parametrize(
    ("losing", "body", "words"),
    [
        (rule(endpoints=["embeddings"]), "{}", "not for the endpoint chat"),
        (rule(model_names=["x"]), "{}", "none of its model_names matches 'gpt-4o'"),
        (rule(when=When(max_temperature=0.5)), "{}", "absent, which counts as 1.0, above 0.5"),
        (rule(when=When(max_temperature=0.5)), '{"temperature":2}', "temperature is above 0.5"),
        (rule(when=When(max_temperature=0.5)), '{"temperature":""}', "is not a number"),
        (rule(when=When(max_messages=1)), '{"messages":[1,2]}', "2 messages, more than 1"),
        (rule(when=When(max_messages=1)), '{"messages":1}', "messages is not an array"),
        (rule(when=When(has_user_message=True)), "{}", "no message of the role user"),
        (
            rule(when=When(has_user_message=False)),
            '{"messages":[{"role":"user"}]}',
            "a message of the role user",
        ),
        (rule(when=When(headers=(("x-env", "prod"),))), "{}", "no header x-env matches 'prod'"),
    ],
)
def test_B9_why_a_rule_does_not_match_is_said_in_words(losing: Rule, body: str, words: str) -> None:
    reason = why_not(losing, asked(body))
    assert reason is not None
    assert words in reason


def test_B69_the_words_do_not_repeat_header_values() -> None:
    conditional = rule(when=When(headers=(("authorization", "prod"),)))
    reason = why_not(conditional, asked(headers=((b"authorization", b"sk-secret"),)))
    assert reason is not None
    assert "sk-secret" not in reason


def test_B9_rules_passed_over_end_at_the_winner() -> None:
    rules = RuleSet([rule("a", model_names=["x"]), rule("b"), rule("c", model_names=["y"])])
    assert [passed.name for passed, _ in rules.passed_over(asked())] == ["a"]
    assert why_not(rules.rules[1], asked()) is None


def test_many_model_names_do_not_fill_the_memory() -> None:
    rules = RuleSet([rule("glob", model_names=["m*"])])
    for number in range(3 * _MEMO_SIZE):
        assert rules.match(asked(model=f"m{number}")) is not None
        assert rules.match(asked(model=f"n{number}")) is None
    rules.match(asked(model="m" * 100_000))
    assert len(rules._memo) <= _MEMO_SIZE
    assert all(len(model) < 1_000 for _, model in rules._memo)
