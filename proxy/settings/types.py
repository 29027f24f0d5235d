"""The kinds of value that settings are made of; reading a value never shows it in an error."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)


class Plain(str):
    """A text without quotes that came out of a variable: its type is what its place asks for."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a value may refer to: environment variables, and files relative to `base`."""

    env: Mapping[str, str]
    base: Path

    @staticmethod
    def of(info: ValidationInfo) -> "Surroundings":
        """Those that the caller gave as validation context, else this process's own."""
        if isinstance(info.context, Surroundings):
            return info.context
        return Surroundings(env=os.environ, base=Path.cwd())


class Section(BaseModel):
    """One mapping of the settings: frozen, no unknown members, nothing of the input in errors.

    An empty value (`name:` or null) stands for the default; where null is allowed, so does "".
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, given: Any) -> Any:
        if given is None:
            return {}
        if not isinstance(given, dict):
            return given
        kept = {}
        for name, value in given.items():
            field = cls.model_fields.get(name)
            if field is None:
                kept[name] = value
                continue
            nullable = NoneType in get_args(field.annotation)
            empty = isinstance(value, str) and value == ""
            null_word = isinstance(value, Plain) and value in {"null", "~"}
            if nullable and (empty or null_word):
                kept[name] = None
            elif nullable or value is not None:
                kept[name] = value
        return kept


def _no_bool(value: Any) -> Any:
    """Booleans are integers to Python, and `port: true` is a mistake."""
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 (pydantic turns only ValueError into a mistake)
    return value


_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return _no_bool(value)
    match = _SIZE.fullmatch(value.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("must be a size in bytes: a number, or one with kB, KiB, MB, MiB, GB, GiB")
    return int(float(match[1]) * unit)


def _path(value: Path, info: ValidationInfo) -> Path:
    return Surroundings.of(info).base / value.expanduser()


def _http_url(value: str) -> str:
    parts = _split(value, {"http", "https"})
    if not parts.hostname:
        raise ValueError("must name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user or password")
    if parts.query or parts.fragment:
        raise ValueError("must have no query and no fragment; put the query into `query`")
    return value.rstrip("/")


def _split(value: str, schemes: set[str]) -> Any:
    """The parts of a URL; raises ValueError without the URL in it (it may hold a password)."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("must be a URL") from None
    if parts.scheme not in schemes:
        starts = ", ".join(f"{scheme}://" for scheme in sorted(schemes))
        raise ValueError(f"must be a URL that starts with one of: {starts}")
    return parts


def check_url(value: str, *schemes: str) -> None:
    """Raise ValueError, never naming the URL, unless it has one of the schemes."""
    _split(value, set(schemes))


def _header_value(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII on one line, as headers are")
    return value


def _size_schema(minimum: int) -> dict[str, Any]:
    unit = {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([kKmMgGtT]?[iI]?[bB])?$"}
    return {"anyOf": [{"type": "integer", "minimum": minimum}, unit]}


# Each pattern of a setting, in words that end "must be …".
PATTERNS: Final[Mapping[str, str]] = {
    (NAME_PATTERN := r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"): (
        "a name: at most 64 letters, digits, `.`, `_` or `-`, with a letter or digit first"
    ),
    (HEADER_PATTERN := r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"): "a header name",
    (HASH_PATTERN := r"^sha256:[0-9a-f]{64}$"): (
        "`sha256:` and 64 hex digits (`magic-proxy hash-key` prints it)"
    ),
    (PREFIX_PATTERN := r"^[!-~]{1,200}$"): "1 to 200 printable ASCII characters without spaces",
}

# Spelled as in the reference (`docs/configuration.md`), which names the types after these.
NotBool: Final = BeforeValidator(_no_bool)
Bytes: TypeAlias = Annotated[
    int, BeforeValidator(_size), Field(ge=1), WithJsonSchema(_size_schema(1))
]
BytesOrNone: TypeAlias = Annotated[
    int, BeforeValidator(_size), Field(ge=0), WithJsonSchema(_size_schema(0))
]
Count: TypeAlias = Annotated[int, Field(ge=0), NotBool]
Positive: TypeAlias = Annotated[int, Field(ge=1), NotBool]
Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False), NotBool]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NotBool]
Amount: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False), NotBool]
Wait: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False), NotBool]
ConfigPath: TypeAlias = Annotated[Path, AfterValidator(_path)]
HttpUrl: TypeAlias = Annotated[str, AfterValidator(_http_url)]
Name: TypeAlias = Annotated[str, Field(pattern=NAME_PATTERN)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
HeaderName: TypeAlias = Annotated[str, Field(pattern=HEADER_PATTERN)]
HeaderValue: TypeAlias = Annotated[str, AfterValidator(_header_value)]

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | None] = {
    "": None,
    "~": None,
    **dict.fromkeys(("null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def plain_scalar(text: str) -> bool | int | float | str | None:
    """The value of an unquoted YAML scalar, by the core schema of YAML 1.2.

    Not 1.1: `no`, `1:30`, `010` and `2024-10-21` stay what they look like.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit():
        return float(text)
    return str(text)
