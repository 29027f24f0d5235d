"""Rules and derivations from the JSON of the vectors, and short ways to write them in tests."""

import re
from typing import Any

from proxy.core.canonical import parse_body
from proxy.core.key import Derivation, derive, make_scope
from proxy.core.matching import RuleSet
from proxy.core.paths import FieldPath
from proxy.core.request import CacheableRequest
from proxy.core.rules import Normalization, Rule, UnlistedFields, When
from proxy.core.wire import MODEL_ENDPOINTS, Endpoint


def rule_of(given: dict[str, Any], when: When | None = None) -> Rule:
    return Rule(
        name=given.get("name", "rule"),
        model_names=tuple(given.get("model_names", ["*"])),
        include_in_key=tuple(map(FieldPath.parse, given["include_in_key"])),
        exclude_from_key=tuple(map(FieldPath.parse, given.get("exclude_from_key", []))),
        endpoints=frozenset(map(Endpoint, given.get("endpoints", MODEL_ENDPOINTS))),
        unlisted_fields=UnlistedFields(given.get("unlisted_fields", "guard")),
        normalize=tuple(
            Normalization(
                FieldPath.parse(item["path"]), re.compile(item["pattern"]), item["replacement"]
            )
            for item in given.get("normalize", [])
        ),
        ttl_seconds=60.0,
        when=when or When(),
    )


def scope_from(parts: dict[str, Any]) -> str:
    return make_scope(
        tenant=parts.get("tenant"),
        credential=parts.get("credential"),
        account_headers=[(name, value) for name, value in parts.get("account", [])],
        query=parts.get("query", ""),
    )


def derive_vector(vector: dict[str, Any]) -> Derivation:
    return derivation_of(
        vector["request"].encode(),
        rule_of(vector["rule"]),
        endpoint=Endpoint(vector["endpoint"]),
        model=vector["model"],
        scope=scope_from(vector.get("scope", {})),
    )


def derivation_of(
    body: bytes,
    *rules: Rule,
    endpoint: Endpoint = Endpoint.CHAT,
    model: str = "m",
    scope: str = "shared",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Derivation:
    parsed = parse_body(body)
    request = CacheableRequest(endpoint, model, parsed.fields, scope, headers, parsed.flaw)
    return derive(request, RuleSet(rules))
