"""Explanations: every field in one place, and the same key as the derivation's."""

import json

from proxy.core.explain import Explanation, PassedOver, explain
from proxy.core.key import NoKey
from proxy.core.request import Flaw
from proxy.core.rules import Rule, When
from proxy.core.wire import Endpoint
from tests.vectors.rules import derivation_of, rule_of

BODY = (
    b'{"model":"alias","messages":[{"role":"user","content":"a","name":"n"}],"stream":true,'
    b'"user":"u","seed":7,"temperature":1.0}'
)
NAMED = rule_of(
    {
        "name": "named",
        "include_in_key": ["messages[*].content", "temperature", "max_tokens"],
        "exclude_from_key": ["user"],
    }
)


def explained(body: bytes, *rules: Rule, endpoint: Endpoint = Endpoint.CHAT) -> Explanation:
    return explain(derivation_of(body, *rules, endpoint=endpoint), "p:")


def test_B8_the_explanation_shows_the_key_that_was_derived() -> None:
    derivation = derivation_of(BODY, NAMED)
    explanation = explain(derivation, "p:")
    assert derivation.key is not None
    assert explanation.digest == derivation.key.digest
    assert explanation.store_key == derivation.key.store_key("p:")
    assert explanation.canonical == (
        '{"internal_model_name":"m","messages":[{"content":"a"}],"temperature":1}'
    )
    assert (explanation.rule, explanation.scope, explanation.no_key) == ("named", "shared", None)


def test_B6_every_field_has_one_place() -> None:
    fields = explained(BODY[:-1] + b',"tools":[]}', NAMED).fields
    assert fields.in_key == ("messages", "temperature")
    assert fields.model == ("model",)
    assert fields.delivery == ("stream",)
    assert fields.excluded == ("user",)
    assert fields.barring == ("tools",)
    assert fields.ignored == ("seed",)
    assert fields.absent == ("max_tokens",)


def test_B6_the_field_in_the_way_is_named() -> None:
    explanation = explained(BODY[:-1] + b',"tools":[]}', NAMED)
    assert (explanation.no_key, explanation.field) == (NoKey.UNLISTED_FIELD, "tools")
    assert (explanation.canonical, explanation.digest, explanation.store_key) == (None, None, None)


def test_B4_delivery_of_embeddings_includes_the_encoding() -> None:
    star = rule_of({"include_in_key": ["*"]})
    body = b'{"input":"a","encoding_format":"base64"}'
    assert explained(body, star, endpoint=Endpoint.EMBEDDINGS).fields.delivery == (
        "encoding_format",
    )
    assert explained(body, star).fields.in_key == ("encoding_format", "input")


def test_B9_rules_passed_over_say_why() -> None:
    cold = rule_of({"name": "cold", "include_in_key": ["*"]}, When(max_temperature=0.5))
    assert explained(BODY, cold, NAMED).passed_over == (
        PassedOver("cold", "temperature is above 0.5"),
    )


def test_no_rule_leaves_no_fields_and_says_so() -> None:
    explanation = explained(BODY)
    assert (explanation.rule, explanation.no_key) == (None, NoKey.NO_RULE)
    assert explanation.fields.in_key == ()


def test_an_explanation_is_json() -> None:
    plain = explained(BODY, NAMED).as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["fields"] == {
        "in_key": ["messages", "temperature"],
        "model": ["model"],
        "delivery": ["stream"],
        "excluded": ["user"],
        "barring": [],
        "ignored": ["seed"],
        "absent": ["max_tokens"],
    }
    assert plain["endpoint"] == "chat"
    assert plain["scheme"] == 1


def test_B18_a_flawed_body_can_be_explained() -> None:
    explanation = explained(b'{"\\ud800":1,"x":2}', rule_of({"include_in_key": ["*"]}))
    assert (explanation.flaw, explanation.no_key) == (Flaw.LONE_SURROGATE, NoKey.UNREPRESENTABLE)
    plain = explanation.as_dict()
    assert plain["flaw"] == "lone-surrogate"
    assert "\\\\ud800" in json.dumps(plain["fields"])
