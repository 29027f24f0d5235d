"""Tags: names that an operator gives to entries, to purge them by.

project:{header.x-project}    a header of the request
user:{metadata.user}          a request field
batch                         nothing but a name
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, TypeAlias

from proxy.core.canonical import canonical_json
from proxy.core.paths import ELEMENTS, FieldPath
from proxy.core.wire import Headers, JsonValue

MOST_TAGS: Final = 64
LONGEST_TAG: Final = 128

# Many more in one request than an entry may have: they are refused before they are looked at.
_MOST_PIECES: Final = 16 * MOST_TAGS
_HEADER_PLACE: Final = "header."
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PART: Final = re.compile(r'(?P<text>[^{}]+)|\{(?P<place>(?:"(?:[^"\\]|\\.)*"|[^{}"])*)\}')
# Tags are stored and shown. These headers hold secrets.
_SECRET: Final = frozenset(
    {
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"api-key",
        b"x-api-key",
        b"x-goog-api-key",
        b"x-admin-key",
    }
)


def normalized_tag(text: str) -> str:
    """The tag as it is stored and compared: any text of a strange kind goes by its hash.

    Longer than `LONGEST_TAG`, or with characters that are not printable or separate tags in a
    header, it is `sha256-` and the digest. Entries and purges both go through here.
    """
    text = text.strip()
    if len(text) <= LONGEST_TAG and text.isprintable() and "," not in text:
        return text
    return "sha256-" + sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class _HeaderPlace:
    """`name` is in lower case."""

    name: bytes


_Part: TypeAlias = str | _HeaderPlace | FieldPath


@dataclass(frozen=True, slots=True)
class TagTemplate:
    """A tag with places for what a request says, such as `project:{header.x-project}`.

    A place is `header.<name>` or the path of a request field. A request that lacks one of them,
    or has nothing or no plain value there, does not get the tag.
    """

    text: str
    parts: tuple[_Part, ...]

    @classmethod
    def parse(cls, text: str) -> "TagTemplate":
        """Read a template; ValueError says what is wrong."""
        if not text.strip():
            raise ValueError("a tag must not be empty")
        parts: list[_Part] = []
        at = 0
        while at < len(text):
            part = _PART.match(text, at)
            if part is None:
                raise ValueError(
                    f"{text!r} is not a tag: the brace at character {at + 1} has no partner"
                    " (example: project:{header.x-project})"
                )
            parts.append(part["text"] or _place(text, part["place"]))
            at = part.end()
        return cls(text, tuple(parts))

    def tag(self, fields: Mapping[str, JsonValue], headers: Headers) -> str | None:
        """The normalized tag of a request; None where it does not get this one."""
        filled: list[str] = []
        for part in self.parts:
            match part:
                case str():
                    filled.append(part)
                    continue
                case _HeaderPlace(name=name):
                    lines = [_decoded(value) for key, value in headers if key == name]
                    value = ", ".join(lines)
                case _:
                    value = _at(part, fields)
            if not value.strip():
                return None
            filled.append(value)
        return normalized_tag("".join(filled)) or None


def tags_of(
    templates: Iterable[TagTemplate],
    fields: Mapping[str, JsonValue],
    headers: Headers,
    tags_header: bytes | None,
) -> tuple[str, ...] | None:
    """The tags of a request, normalized and sorted; None where they are more than `MOST_TAGS`.

    `templates` are its rule's; `tags_header` (in lower case) is where the client may name more,
    separated by commas.
    """
    tags = {tag for template in templates if (tag := template.tag(fields, headers)) is not None}
    if tags_header is not None:
        given = [value for name, value in headers if name == tags_header]
        if sum(value.count(b",") + 1 for value in given) > _MOST_PIECES:
            return None
        for value in given:
            # Each by itself: one that is not UTF-8 must not make the others mean something else.
            tags.update(normalized_tag(_decoded(piece)) for piece in value.split(b","))
        tags.discard("")
    return tuple(sorted(tags)) if len(tags) <= MOST_TAGS else None


def _place(text: str, place: str) -> _Part:
    if not place.startswith(_HEADER_PLACE):
        try:
            path = FieldPath.parse(place)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a tag: {error}") from None
        if path.takes_all or ELEMENTS in path.steps:
            raise ValueError(f"{text!r} is not a tag: {{{place}}} must lead to one value")
        return path
    name = place.removeprefix(_HEADER_PLACE)
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"{text!r} is not a tag: {name!r} is not a header name")
    lower = name.lower().encode()
    if lower in _SECRET:
        raise ValueError(f"{text!r} is not a tag: the header {name} holds a credential")
    return _HeaderPlace(lower)


def _at(path: FieldPath, fields: Mapping[str, JsonValue]) -> str:
    """The plain value at the path as a text, a number in its canonical form; "" for none."""
    value = fields.get(path.root)
    for step in path.steps:
        if type(value) is not dict or step is None:
            return ""
        value = value.get(step)
    if isinstance(value, str):
        return value
    return canonical_json(value).decode() if isinstance(value, int | float) else ""


def _decoded(value: bytes) -> str:
    # Clients send UTF-8, though HTTP says Latin-1.
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
