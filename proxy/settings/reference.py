"""The table of all settings in `docs/configuration.md`, made from the models.

`python -m proxy.settings.reference docs/configuration.md` writes it between its two marks.
"""

import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic_core import PydanticUndefined

from proxy.settings.describe import section_within
from proxy.settings.models import Settings
from proxy.settings.types import Section

START: Final = "<!-- reference: made by `python -m proxy.settings.reference`, not by hand -->"
END: Final = "<!-- end of the reference -->"

_KINDS: Final[Mapping[str, str]] = {
    "string": "text",
    "integer": "number",
    "number": "number",
    "boolean": "true, false",
    "null": "null",
}


def reference() -> str:
    """One table for each section, in the order of the models."""
    schema = Settings.model_json_schema()
    return "\n\n".join(_tables(Settings, "", schema["$defs"], schema))


def with_reference(text: str) -> str:
    """A document with the reference of today between its marks."""
    before, mark, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"the document must hold the lines {START} and {END}")
    return f"{before}{START}\n\n{reference()}\n\n{END}{after}"


def setting_paths(section: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    """The path of every setting, `[]` for list items and `<name>` for names that users give."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        inner = section_within(field.annotation)
        if inner is not None:
            yield from setting_paths(inner, f"{path}{_step(inner, field.annotation)}")


def _step(inner: type[Section], annotation: Any) -> str:
    if inner is annotation:
        return "."
    return ".<name>." if "Mapping" in str(annotation) else "[]."


def _tables(
    section: type[Section], prefix: str, sections: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[str]:
    heading = f"### `{prefix.rstrip('.')}`" if prefix else "### Top level"
    lines = [heading, "", "| setting | type | default | meaning |", "|---|---|---|---|"]
    inner_tables: list[str] = []
    for name, field in section.model_fields.items():
        shape = schema["properties"][name]
        kind = _kind(name, shape, sections)
        meaning = (field.description or "").replace("|", "\\|")
        given = field.get_default(call_default_factory=False)
        default = "**required**" if field.is_required() else _default(given, name, meaning)
        lines.append(f"| `{name}` | {kind} | {default} | {meaning} |")
        inner = section_within(field.annotation)
        if inner is not None:
            step = _step(inner, field.annotation)
            inner_tables += _tables(
                inner, f"{prefix}{name}{step}", sections, sections[inner.__name__]
            )
    yield "\n".join(lines)
    yield from inner_tables


def _kind(name: str, shape: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    """The type in words."""
    if "$ref" in shape:
        target = sections[shape["$ref"].rpartition("/")[2]]
        return "section" if "properties" in target else _kind(name, target, sections)
    if "enum" in shape or "const" in shape:
        return ", ".join(f"`{value}`" for value in shape.get("enum") or [shape["const"]])
    parts = shape.get("anyOf") or shape.get("oneOf")
    if parts and name.endswith("_bytes"):
        return "size"
    if parts:
        return " or ".join(dict.fromkeys(_kind(name, part, sections) for part in parts))
    if name.endswith("_seconds") and shape.get("type") == "number":
        return "seconds"
    return _container(shape, sections) or _KINDS.get(str(shape.get("type")), "any value")


def _container(shape: Mapping[str, Any], sections: Mapping[str, Any]) -> str | None:
    match shape.get("type"):
        case "array":
            return f"list of {_plural(_kind('', shape['items'], sections))}"
        case "object":
            inner = shape.get("additionalProperties")
            inner = inner or next(iter(shape.get("patternProperties", {}).values()), {})
            return f"mapping of names to {_plural(_kind('', inner, sections))}"
        case _:
            return None


def _plural(kind: str) -> str:
    return f"{kind}s" if kind in {"text", "number", "section", "any value"} else kind


def _default(value: Any, name: str, meaning: str) -> str:
    if value is PydanticUndefined or isinstance(value, Section):
        return ""
    if "default:" in meaning.lower():
        return "see there"
    if value is None:
        return "null"
    plain = _plain(value)
    if plain in ([], {}):
        return "none"
    if isinstance(plain, list) and isinstance(plain[0], dict):
        return "see above"
    if isinstance(plain, list) and len(plain) == 1:
        plain = plain[0]
    if name.endswith("_bytes"):
        plain = _size(plain)
    text = plain if isinstance(plain, str) and plain else orjson.dumps(plain).decode()
    return f"`{text.removesuffix('.0')}`"


def _size(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        larger, rest = divmod(count, 1024)
        if rest or not larger:
            return f"{count} {unit}"
        count = larger
    return f"{count} GiB"


def _plain(value: Any) -> Any:
    match value:
        case Section():
            return value.model_dump(mode="json")
        case Enum():
            return value.value
        case tuple():
            return [_plain(item) for item in value]
        case _:
            return value


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(with_reference(page.read_text(encoding="utf-8")), encoding="utf-8")
