"""A second key derivation, written from docs/keys.md with other means: it shares no code with ours.

Numbers and strings are written by an RFC 8785 library, the rest is the standard library.
`python -m tests.vectors.independent` fills in what is expected of vectors that lack it.
"""

import hashlib
import json
import re
from copy import deepcopy
from decimal import Decimal, localcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import rfc8785

VECTORS = Path(__file__).with_name("keys.json")
ITEMS = Path(__file__).with_name("items.json")

FORM = [
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "response_format",
    "n",
    "logprobs",
    "top_logprobs",
    "modalities",
    "audio",
    "encoding_format",
    "dimensions",
]
HARMLESS = ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"]


class Number:
    """A number's token, unconverted."""

    def __init__(self, token: str) -> None:
        self.token = token


class Unrepresentable(Exception):
    """The body can't be represented exactly."""


def parse(text: str) -> Any:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise Unrepresentable
        return dict(pairs)

    return json.loads(text, object_pairs_hook=members, parse_int=Number, parse_float=Number)


def write(value: Any) -> str:
    if isinstance(value, dict):
        inside = (f"{write(name)}:{write(value[name])}" for name in sorted(value))
        return "{" + ",".join(inside) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    if isinstance(value, Number):
        return write_number(value.token)
    try:
        return rfc8785.dumps(value).decode()
    except rfc8785.CanonicalizationError:
        raise Unrepresentable from None


def write_number(token: str) -> str:
    is_plain = token.lstrip("-").isdigit()
    if not is_plain and float(token) in {float("inf"), float("-inf")}:
        raise Unrepresentable
    with localcontext() as context:
        context.prec = max(1000, 2 * len(token))
        for spelling in (token, repr(float(token))):
            exact = Decimal(spelling)
            if exact == exact.to_integral_value():
                digits = format(exact.copy_abs(), "f").partition(".")[0].lstrip("0") or "0"
                return f"-{digits}" if exact < 0 else digits
    return rfc8785.dumps(float(token)).decode()


def steps(path: str) -> list[str]:
    """`messages[*].content` as `["messages", "[*]", ".content"]`."""
    found = re.findall(r'\[\*\]|\.?"(?:[^"\\]|\\.)*"|\.?[^.\[\]"]+', path)
    return [
        ("." if step.startswith(".") else "") + json.loads(step.lstrip("."))
        if '"' in step
        else step
        for step in found
    ]


def take(value: Any, paths: list[list[str]]) -> Any:
    if [] in paths:
        return value
    if isinstance(value, dict) and any(path[0] != "[*]" for path in paths):
        return {
            name: take(member, below)
            for name, member in value.items()
            if (below := [path[1:] for path in paths if path[0] == "." + name])
        }
    if isinstance(value, list) and any(path[0] == "[*]" for path in paths):
        below = [path[1:] for path in paths if path[0] == "[*]"]
        return [take(element, below) for element in value]
    return value


def drop(value: Any, path: list[str]) -> None:
    """Remove what is at `path` from `value`, in place."""
    first, *rest = path
    if first == "[*]":
        if isinstance(value, list):
            if not rest:
                value.clear()
            for element in value:
                drop(element, rest)
    elif isinstance(value, dict) and first[1:] in value:
        if rest:
            drop(value[first[1:]], rest)
        else:
            del value[first[1:]]


def reached(value: Any, paths: list[list[str]]) -> bool:
    if [] in paths:
        return True
    if isinstance(value, dict) and any(path[0] != "[*]" for path in paths):
        return any(
            reached(member, [path[1:] for path in paths if path[0] == "." + name])
            for name, member in value.items()
            if any(path[0] == "." + name for path in paths)
        )
    if isinstance(value, list) and any(path[0] == "[*]" for path in paths):
        below = [path[1:] for path in paths if path[0] == "[*]"]
        return any(reached(element, below) for element in value)
    return True


def substitute(value: Any, path: list[str], pattern: str, replacement: str) -> Any:
    if not path:
        if isinstance(value, str):
            return re.sub(pattern, replacement, value)
        if isinstance(value, list):
            return [substitute(element, [], pattern, replacement) for element in value]
        return value
    first, *rest = path
    if first == "[*]" and isinstance(value, list):
        return [substitute(element, rest, pattern, replacement) for element in value]
    if first != "[*]" and isinstance(value, dict) and first[1:] in value:
        value[first[1:]] = substitute(value[first[1:]], rest, pattern, replacement)
    return value


def scope_of(parts: dict[str, Any]) -> str:
    present = {name: part for name, part in parts.items() if part}
    if "account" in present:
        present["account"] = sorted(
            ([name.lower(), value] for name, value in present["account"]), key=lambda pair: pair[0]
        )
    if not present:
        return "shared"
    return hashlib.sha256(write(present).encode()).hexdigest()[:32]


def expected(vector: dict[str, Any]) -> dict[str, Any]:
    """What a vector must come to: a key with its canonical text, or the reason for none."""
    rule, endpoint = vector["rule"], vector["endpoint"]
    if endpoint not in rule.get("endpoints", ["chat", "embeddings"]) or not any(
        fnmatchcase(vector["model"], glob) for glob in rule["model_names"]
    ):
        return {"no_key": "no-rule", "field": None}
    try:
        fields = parse(vector["request"])
        write(fields)
        return _from_fields(vector, fields)
    except Unrepresentable:
        return {"no_key": "unrepresentable", "field": None}


def _from_fields(vector: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    rule, endpoint = vector["rule"], vector["endpoint"]
    delivery = {"stream", "stream_options"}
    if endpoint == "embeddings":
        delivery.add("encoding_format")
    include = [steps(path) for path in rule["include_in_key"]]
    exclude = [steps(path) for path in rule.get("exclude_from_key", [])]
    removed = {path[0] for path in exclude if len(path) == 1}
    named = {path[0] for path in include}
    star = "*" in named

    def reach(name: str) -> list[list[str]]:
        if star and name not in delivery | {"model"}:
            return [[]]
        return [path[1:] for path in include if path[0] == name]

    unlisted = fields.keys() - named - removed - delivery - {"model"}
    mode = rule.get("unlisted_fields", "guard")
    in_the_way: set[str] = set()
    if mode != "ignore" and not star:
        in_the_way = unlisted & set(FORM) if mode == "guard" else unlisted - set(HARMLESS)
    if in_the_way:
        return {"no_key": "unlisted-field", "field": min(in_the_way)}

    taken = {
        name: deepcopy(take(value, reach(name)))
        for name, value in fields.items()
        if reach(name) and name not in removed
    }
    for path in exclude:
        drop(taken, ["." + path[0], *path[1:]])
    for change in rule.get("normalize", []):
        path = steps(change["path"])
        for name in list(taken) if path == ["*"] else [path[0]]:
            if name in taken:
                taken[name] = substitute(
                    taken[name], path[1:], change["pattern"], change["replacement"]
                )
    if "internal_model_name" in taken:
        return {"no_key": "reserved-field", "field": "internal_model_name"}
    if not any(reached(value, reach(name)) for name, value in taken.items()):
        return {"no_key": "no-included-field", "field": None}
    canonical = write({**taken, "internal_model_name": vector["model"]})
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    scope = scope_of(vector.get("scope", {}))
    return {
        "canonical": canonical,
        "digest": digest,
        "store_key": f"magic_proxy:cache:v1:{endpoint}:{scope}:{digest}",
    }


def expected_items(vector: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What each item of an embeddings request comes to; None where there are none."""
    if "digest" not in expected(vector):
        return None
    rule, fields = vector["rule"], parse(vector["request"])
    include = [steps(path) for path in rule["include_in_key"]]
    deeper = [steps(path) for path in rule.get("exclude_from_key", [])]
    deeper += [steps(change["path"]) for change in rule.get("normalize", [])]
    if vector["endpoint"] != "embeddings" or not (["input"] in include or ["*"] in include):
        return None
    if ["input"] in [steps(path) for path in rule.get("exclude_from_key", [])]:
        return None
    if any(path[0] == "input" and len(path) > 1 for path in deeper):
        return None
    items = split(fields.get("input"))
    return items and [_from_fields(vector, {**fields, "input": item}) for item in items]


def split(given: Any) -> list[Any] | None:
    if isinstance(given, str) or is_tokens(given):
        return [given]
    if not isinstance(given, list) or not given:
        return None
    if all(isinstance(item, str) for item in given) or all(map(is_tokens, given)):
        return given
    return None


def is_tokens(given: Any) -> bool:
    return (
        isinstance(given, list)
        and bool(given)
        and all(isinstance(one, Number) and one.token.lstrip("-").isdigit() for one in given)
    )


def main() -> None:
    for file, come_to in ((VECTORS, expected), (ITEMS, expected_items)):
        vectors = json.loads(file.read_text("utf-8"))
        for vector in vectors:
            if "expected" not in vector:
                vector["expected"] = come_to(vector)
        file.write_text(json.dumps(vectors, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
