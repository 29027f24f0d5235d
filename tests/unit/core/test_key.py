"""Keys: one derivation, the reasons for having none, store keys and scopes."""

import copy
import re

import pytest

from proxy.core.canonical import parse_body
from proxy.core.key import (
    SCHEME_VERSION,
    CacheKey,
    NoKey,
    create_cache_key,
    credential_fingerprint,
    derive,
    make_scope,
)
from proxy.core.matching import RuleSet
from proxy.core.paths import FieldPath
from proxy.core.projection import DELIVERY, FORM_FIELDS, NO_EFFECT
from proxy.core.request import CacheableRequest
from proxy.core.rules import Normalization, Rule
from proxy.core.wire import MODEL_ENDPOINTS, Endpoint
from tests.vectors.rules import derivation_of, rule_of

STAR = rule_of({"include_in_key": ["*"]})
BODY = b'{"model":"m","messages":[{"role":"user","content":"a"}],"temperature":0.5}'


def request(body: bytes = BODY, **changes: object) -> CacheableRequest:
    parsed = parse_body(body)
    given: dict[str, object] = {
        "endpoint": Endpoint.CHAT, "model": "m", "fields": parsed.fields, "flaw": parsed.flaw,
    }  # fmt: skip
    return CacheableRequest(**(given | changes))  # type: ignore[arg-type]  # names checked by use


def store_key(asked: CacheableRequest, *rules: Rule) -> str | None:
    key = create_cache_key(asked, RuleSet(rules))
    return None if key is None else key.store_key("p:")


def test_B8_the_central_function_is_the_derivation() -> None:
    rules = RuleSet([STAR])
    key = create_cache_key(request(), rules)
    assert key is not None
    assert key == derive(request(), rules).key


def test_B1_no_rule_no_key() -> None:
    assert store_key(request()) is None
    derivation = derive(request(), RuleSet())
    assert (derivation.key, derivation.rule, derivation.reason) == (None, None, NoKey.NO_RULE)


def test_B1_no_included_field_no_key() -> None:
    derivation = derivation_of(BODY, rule_of({"include_in_key": ["input", "prompt"]}))
    assert (derivation.key, derivation.reason) == (None, NoKey.NO_INCLUDED_FIELD)
    assert derivation.rule is not None


def test_B1_one_included_field_is_enough() -> None:
    assert derivation_of(BODY, rule_of({"include_in_key": ["input", "temperature"]})).key


def test_B1_the_model_counts() -> None:
    assert store_key(request(), STAR) != store_key(request(model="n"), STAR)


def test_B3_the_store_key_names_scheme_endpoint_scope_and_digest() -> None:
    key = CacheKey(SCHEME_VERSION, Endpoint.CHAT, "shared", "0" * 64)
    assert key.store_key("magic_proxy:cache:") == f"magic_proxy:cache:v1:chat:shared:{'0' * 64}"


def test_B3_endpoints_scopes_and_schemes_never_share() -> None:
    keys = {
        store_key(request(endpoint=endpoint, scope=scope), STAR)
        for endpoint in MODEL_ENDPOINTS
        for scope in ("shared", "0" * 32)
    }
    assert len(keys) == 4
    digest = "0" * 64
    assert len({CacheKey(n, Endpoint.CHAT, "s", digest).store_key("") for n in (1, 2, 11)}) == 3


@pytest.mark.parametrize("prefix", ["", "p:", "magic_proxy:cache:", "v1:chat:shared:"])
def test_B3_a_store_key_is_read_back(prefix: str) -> None:
    key = create_cache_key(request(scope=make_scope(tenant="t")), RuleSet([STAR]))
    assert key is not None
    assert CacheKey.parse(key.store_key(prefix), prefix) == key


@pytest.mark.parametrize(
    "text",
    [
        "", "p:", "q:v1:chat:s:" + "0" * 64, "p:v1:chat:s:" + "0" * 63, "p:v1:chat::" + "0" * 64,
        "p:v0:chat:s:" + "0" * 64, "p:1:chat:s:" + "0" * 64, "p:v1:images:s:" + "0" * 64,
        "p:v1:chat:S:" + "0" * 64, "p:v1:chat:s:" + "A" * 64, "p:v1:chat:s:t:" + "0" * 64,
        "p:v1:chat:s:" + "0" * 64 + "\n", "v1:chat:s:" + "0" * 64,
    ],
)  # fmt: skip
def test_B51_what_is_no_store_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # from this parser or from the Endpoint enum
        CacheKey.parse(text, "p:")


@pytest.mark.parametrize("endpoint", MODEL_ENDPOINTS)
@pytest.mark.parametrize("field", ["stream", "stream_options"])
def test_B4_delivery_is_in_no_key_unless_listed(field: str, endpoint: Endpoint) -> None:
    body = BODY[:-1] + b',"%s":{"include_usage":true}}' % field.encode()
    named = rule_of({"include_in_key": ["messages"], "unlisted_fields": "bypass"
                     , "exclude_from_key": ["temperature"]})  # fmt: skip
    for rule in (STAR, named):
        with_it, without = (derivation_of(raw, rule, endpoint=endpoint).key for raw in (body, BODY))
        assert with_it == without is not None
    listed = rule_of({"include_in_key": ["*", field]})
    assert derivation_of(body, listed).key != derivation_of(BODY, listed).key


def test_B5_star_takes_fields_that_nobody_knows() -> None:
    assert derivation_of(BODY, STAR).key != derivation_of(BODY[:-1] + b',"new":1}', STAR).key


def test_B5_an_exclusion_takes_out_again() -> None:
    rule = rule_of({"include_in_key": ["*"], "exclude_from_key": ["user", "messages[*].name"]})
    other = BODY.replace(b'"content"', b'"name":"n","content"')[:-1] + b',"user":"u"}'
    assert derivation_of(BODY, rule).key == derivation_of(other, rule).key is not None


def test_B5_a_path_reaches_inside() -> None:
    rule = rule_of({"include_in_key": ["messages[*].content"]})
    assert derivation_of(BODY, rule).key == derivation_of(BODY.replace(b"user", b"tool"), rule).key
    assert derivation_of(BODY, rule).key != derivation_of(BODY.replace(b'"a"', b'"b"'), rule).key


MESSAGES = {"include_in_key": ["messages", "temperature"]}


@pytest.mark.parametrize("field", sorted(FORM_FIELDS))
def test_B6_guard_bypasses_and_names_a_field_that_changes_the_form(field: str) -> None:
    body = BODY[:-1] + b',"%s":null,"zzz":1}' % field.encode()
    derivation = derivation_of(body, rule_of(MESSAGES))
    assert (derivation.key, derivation.reason, derivation.field) == (
        None, NoKey.UNLISTED_FIELD, field,
    )  # fmt: skip


def test_B6_the_guarded_fields_are_those_of_the_contract() -> None:
    assert sorted(FORM_FIELDS) == [
        "audio", "dimensions", "encoding_format", "function_call", "functions", "logprobs",
        "modalities", "n", "response_format", "tool_choice", "tools", "top_logprobs",
    ]  # fmt: skip


def test_B6_guard_passes_over_the_rest() -> None:
    body = BODY[:-1] + b',"seed":1,"user":"u"}'
    assert derivation_of(body, rule_of(MESSAGES)).key == derivation_of(BODY, rule_of(MESSAGES)).key


def test_B6_encoding_format_of_embeddings_is_delivery() -> None:
    rule = rule_of({"include_in_key": ["input"], "unlisted_fields": "bypass"})
    plain, base64 = (
        derivation_of(raw, rule, endpoint=Endpoint.EMBEDDINGS).key
        for raw in (b'{"input":"a"}', b'{"input":"a","encoding_format":"base64"}')
    )
    assert plain == base64 is not None


def test_B6_ignore_passes_over_everything() -> None:
    rule = rule_of({**MESSAGES, "unlisted_fields": "ignore"})
    body = BODY[:-1] + b',"tools":[1],"seed":1}'
    assert derivation_of(body, rule).key == derivation_of(BODY, rule).key is not None


@pytest.mark.parametrize(
    "field", ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"]
)
def test_B6_bypass_passes_over_what_has_no_effect(field: str) -> None:
    rule = rule_of({**MESSAGES, "unlisted_fields": "bypass"})
    body = BODY[:-1] + b',"%s":1}' % field.encode()
    assert derivation_of(body, rule).key == derivation_of(BODY, rule).key is not None
    assert field in NO_EFFECT


def test_B6_bypass_bypasses_on_the_rest_and_names_the_first() -> None:
    rule = rule_of({**MESSAGES, "unlisted_fields": "bypass"})
    derivation = derivation_of(BODY[:-1] + b',"user":1,"top_p":1,"seed":1}', rule)
    assert (derivation.key, derivation.reason, derivation.field) == (
        None, NoKey.UNLISTED_FIELD, "seed",
    )  # fmt: skip


def test_B7_normalizing_changes_the_hash_and_not_the_request() -> None:
    change = Normalization(
        FieldPath.parse("messages[*].content"), re.compile(r"\d+ ([ap]m)"), r"<\1>"
    )
    rule = rule_of(MESSAGES)
    rule = Rule(**{name: getattr(rule, name) for name in rule.__slots__} | {"normalize": (change,)})
    asked = [
        request(BODY.replace(b'"a"', b'"at %s"' % time)) for time in (b"5 pm", b"11 pm", b"11 am")
    ]
    before = copy.deepcopy([one.fields for one in asked])
    five, eleven, morning = (derive(one, RuleSet([rule])) for one in asked)
    assert five.key == eleven.key != morning.key
    assert b'"at <pm>"' in five.canonical
    assert [one.fields for one in asked] == before


@pytest.mark.parametrize("body", [b'{"a":1,"a":2}', b'{"a":"\\ud800"}', b'{"a":1e999}'])
def test_B18_a_flawed_body_has_no_key(body: bytes) -> None:
    derivation = derivation_of(body, STAR)
    assert (derivation.key, derivation.reason) == (None, NoKey.UNREPRESENTABLE)
    assert derivation.rule is STAR


def test_B18_a_model_name_that_is_not_unicode_has_no_key() -> None:
    assert derivation_of(BODY, STAR, model="\ud800").reason is NoKey.UNREPRESENTABLE


def test_B1_a_field_cannot_pose_as_the_model() -> None:
    derivation = derivation_of(b'{"x":1,"internal_model_name":"n"}', STAR)
    assert (derivation.key, derivation.reason, derivation.field) == (
        None, NoKey.RESERVED_FIELD, "internal_model_name",
    )  # fmt: skip
    spared = rule_of({"include_in_key": ["*"], "exclude_from_key": ["internal_model_name"]})
    assert derivation_of(b'{"x":1,"internal_model_name":"n"}', spared).key


@pytest.mark.parametrize("included", ["messages", "*"])
def test_B5_excluding_everything_leaves_no_key(included: str) -> None:
    rule = rule_of({"include_in_key": [included], "exclude_from_key": ["*"]})
    assert derivation_of(BODY, rule).reason is NoKey.NO_INCLUDED_FIELD


def test_every_endpoint_of_models_says_what_delivery_is() -> None:
    assert DELIVERY.keys() == set(MODEL_ENDPOINTS)


PARTS = {
    "tenant": "t",
    "credential": "c",
    "account_headers": (("openai-organization", "o"),),
    "query": "q",
}


def test_B19_nothing_that_separates_is_the_shared_scope() -> None:
    assert make_scope() == make_scope(tenant="", credential=None, query="") == "shared"


def test_B19_each_part_separates() -> None:
    scopes = {make_scope()}
    for name, value in PARTS.items():
        scopes.add(make_scope(**{name: value}))  # type: ignore[arg-type]  # mixed types by name
        without = {other: part for other, part in PARTS.items() if other != name}
        scopes.add(make_scope(**without))  # type: ignore[arg-type]  # mixed types by name
    assert len(scopes) == 9
    assert all(re.fullmatch("[a-z0-9-]+", scope) for scope in scopes)


def test_B19_parts_cannot_run_into_each_other() -> None:
    assert make_scope(tenant="a", credential="b") != make_scope(tenant="ab")
    assert make_scope(tenant="x") != make_scope(credential="x") != make_scope(query="x")
    assert make_scope(account_headers=[("a", "b"), ("c", "d")]) != make_scope(
        account_headers=[("a", 'b"],["c","d')]
    )


def test_B19_the_order_and_case_of_account_headers_is_no_difference() -> None:
    one = make_scope(account_headers=[("OpenAI-Project", "p"), ("openai-organization", "o")])
    assert one == make_scope(
        account_headers=[("openai-organization", "o"), ("openai-project", "p")]
    )
    assert one != make_scope(
        account_headers=[("openai-organization", "p"), ("openai-project", "o")]
    )


def test_B70_a_fingerprint_separates_credentials_and_hides_them() -> None:
    one, other = credential_fingerprint(b"sk-one"), credential_fingerprint(b"sk-two")
    assert one != other
    assert re.fullmatch("[0-9a-f]{32}", one)
    assert credential_fingerprint(b"abc") == "ba7816bf8f01cfea414140de5dae2223"
