"""The JSON Schema of the settings, for editors: `python -m proxy.settings.schema > FILE`.

It says what may stand in the YAML file, which is more than what the models hold: short forms,
`${VARIABLE}` in the place of any value, and nothing at all after a section's name.
"""

import sys
from collections.abc import Mapping
from typing import Any, Final

import orjson

from proxy.settings.invalidation import TARGETS_SCHEMA
from proxy.settings.models import Settings
from proxy.settings.store import TIERS_SCHEMA

SHORT_FORMS: Final[Mapping[str, Any]] = {
    "StoreSettings": TIERS_SCHEMA,
    "ApiKeySettings": {"type": "string"},
    "EventSettings": TARGETS_SCHEMA,
    "CircuitSettings": {"type": "boolean", "const": False},
    "RetryBudgetSettings": {
        "anyOf": [{"type": "number", "minimum": 0}, {"type": "boolean", "const": False}]
    },
}
_VARIABLE: Final = {"$ref": "#/$defs/Variable"}
_NULL: Final = {"type": "null"}
_DROPPED: Final = frozenset({"title", "format", "writeOnly"})


def settings_schema() -> dict[str, Any]:
    """The schema, its members sorted, as plain JSON values."""
    given = Settings.model_json_schema()
    sections = {name: _section(section) for name, section in given.pop("$defs").items()}
    sections["Variable"] = {
        "description": "The value of an environment variable.",
        "type": "string",
        "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "magic-proxy settings",
        **_section(given),
        "$defs": dict(sorted(sections.items())),
    }


def schema_text() -> str:
    """The schema as it stands in the repository."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(settings_schema(), option=options).decode()


def _section(schema: dict[str, Any]) -> dict[str, Any]:
    if "properties" not in schema:
        return _value(schema)  # an enumeration
    required = schema.get("required", [])
    return {
        **{name: value for name, value in schema.items() if name not in _DROPPED},
        "properties": {
            name: _property(value, required=name in required)
            for name, value in schema["properties"].items()
        },
    }


def _property(schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    """One setting: what stands beside the value's own shape stays outside the alternatives."""
    shape = dict(schema)
    beside: dict[str, Any] = {}
    if "description" in shape:
        beside["description"] = shape.pop("description")
    if "default" in shape:
        default = shape.pop("default")
        if not _has_mapping(default):  # the documentation shows those better than a tooltip
            beside["default"] = default
    value = _value(shape)
    if not required:
        value = _alternatives([value, _NULL])
    return {**value, **beside}


def _has_mapping(default: Any) -> bool:
    items = default if isinstance(default, list) else [default]
    return any(isinstance(item, dict) for item in items)


def _value(schema: dict[str, Any]) -> dict[str, Any]:
    """What may stand for one value."""
    schema = {name: part for name, part in schema.items() if name not in _DROPPED}
    reference = str(schema.get("$ref", "")).rpartition("/")[2]
    if reference in SHORT_FORMS:
        return _alternatives([schema, _value(dict(SHORT_FORMS[reference]))])
    for branch in ("anyOf", "oneOf"):
        if branch in schema:
            return {**_alternatives([_value(part) for part in schema.pop(branch)]), **schema}
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            schema[inner] = _value(schema[inner])
    if "patternProperties" in schema:
        named = schema["patternProperties"].items()
        schema["patternProperties"] = {pattern: _value(part) for pattern, part in named}
        schema["additionalProperties"] = False
    kind = schema.get("type")
    narrow = kind == "string" and any(name in schema for name in ("enum", "const", "pattern"))
    if kind in {"integer", "number", "boolean"} or narrow:
        return _alternatives([schema, _VARIABLE])
    return schema


def _alternatives(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Any of these, flat, each once."""
    flat: list[Any] = []
    for part in parts:
        flat += part["anyOf"] if set(part) == {"anyOf"} else [part]
    return {"anyOf": [part for at, part in enumerate(flat) if part not in flat[:at]]}


if __name__ == "__main__":
    sys.stdout.write(schema_text())
