"""Read the settings: file, environment, command line; every mistake with its place."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxy.errors import Mistake, SettingsError
from proxy.settings.describe import section_at
from proxy.settings.document import Document, Loc, Place, parse, path_text
from proxy.settings.models import Settings, default_disk_path
from proxy.settings.nearest import did_you_mean
from proxy.settings.overrides import apply_flags, apply_overrides
from proxy.settings.types import PATTERNS, Surroundings

_NO_FLAGS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and where each of them was written."""

    settings: Settings
    place_of: Callable[[Loc], Place]


def load_settings(
    path: Path | None, env: Mapping[str, str], flags: Mapping[str, Any] = _NO_FLAGS
) -> Settings:
    """The settings of a file (None: the defaults). Raises SettingsError with all mistakes.

    `flags` are the command line's, by dotted names (`server.port`); they win over `env`, and
    `env` wins over the file.
    """
    return load(path, env, flags).settings


def load(path: Path | None, env: Mapping[str, str], flags: Mapping[str, Any] = _NO_FLAGS) -> Loaded:
    """The same, with the places for whoever has more to say about them."""
    document = Document() if path is None else parse(_read(path), str(path), env)
    if document.mistakes and not document.values:
        raise SettingsError(document.mistakes)  # a syntax error: there is nothing to go on with
    apply_overrides(document, env)
    apply_flags(document, flags)
    base = Path.cwd() if path is None else path.absolute().parent
    settings = None
    try:
        settings = Settings.model_validate(document.value, context=Surroundings(env, base))
    except ValidationError as error:
        document.mistakes += _mistakes(error, document)
    if settings is None or document.mistakes:
        # No mistakes of its own: what failed was only what follows from a broken value.
        raise SettingsError(sorted(document.mistakes, key=_file_order)) from None
    return Loaded(_with_disk_path(settings, env), document.place_of)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingsError([Mistake(f"cannot read {path}: {reason}", file=str(path))]) from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise SettingsError([Mistake("not UTF-8", "", str(path), line, column)]) from None


def _with_disk_path(settings: Settings, env: Mapping[str, str]) -> Settings:
    """The default path of the disk store depends on the environment that was given."""
    disk = settings.store.disk
    if "path" in disk.model_fields_set:
        return settings
    disk = disk.model_copy(update={"path": default_disk_path(env)})
    store = settings.store.model_copy(update={"disk": disk})
    return settings.model_copy(update={"store": store})


def _file_order(mistake: Mistake) -> tuple[bool, int, int]:
    return (mistake.line == 0, mistake.line, mistake.column)


def _mistakes(error: ValidationError, document: Document) -> Iterator[Mistake]:
    errors = error.errors(include_url=False, include_input=False)
    for details in errors:
        if details["type"] == "too_short" and _has_inner(details, errors):
            continue  # pydantic counts the items that are right; the others have their own errors
        if details["type"] == "contradictions":
            for problem in details["ctx"]["problems"]:
                loc = _written(problem.loc, document.value)
                if not _follows(loc, document):
                    place = document.place_of(loc, name=problem.at_key)
                    yield place.mistake(problem.message, path_text(loc))
            continue
        loc, at_name = _loc(details, document.value)
        if not _follows(loc, document):
            place = document.place_of(loc, name=at_name)
            yield place.mistake(_message(details, loc), path_text(loc))


def _has_inner(details: ErrorDetails, errors: list[ErrorDetails]) -> bool:
    depth = len(details["loc"])
    return any(
        other["loc"][:depth] == details["loc"] and len(other["loc"]) > depth for other in errors
    )


def _follows(loc: Loc, document: Document) -> bool:
    """True where a mistake only follows from a value that is broken already."""
    return any(
        loc[: len(broken)] == broken or broken[: len(loc)] == loc for broken in document.broken
    )


def _written(loc: Loc, value: Any) -> Loc:
    """The way to a setting as the file has it: in a short form, a list stands for its section."""
    written: Loc = ()
    for step in loc:
        if isinstance(value, list) and isinstance(step, str):
            continue
        written = (*written, step)
        try:
            value = value[step]
        except (TypeError, KeyError, IndexError):
            value = None
    return written


def _loc(details: ErrorDetails, value: Any) -> tuple[Loc, bool]:
    """The way to the value as the file has it, and whether the name is what is wrong.

    Pydantic puts steps of its own between (the branch of a union, `[key]`); a step that leads
    nowhere in the file is one of those, but for the last one of a missing member.
    """
    steps = details["loc"]
    at_name = details["type"] == "extra_forbidden" or "[key]" in steps
    loc: Loc = ()
    for index, step in enumerate(steps):
        if isinstance(value, dict) and step in value:
            value = value[str(step)]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        elif details["type"] != "missing" or index < len(steps) - 1:
            continue
        loc = (*loc, step)
    return loc, at_name


_MESSAGES: Mapping[str, str] = {
    "missing": "is required",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text; put it in quotes",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}


def _message(details: ErrorDetails, loc: Loc) -> str:
    """What is wrong and what is allowed; never the value itself."""
    kind, context = details["type"], details.get("ctx", {})
    match kind:
        case "extra_forbidden":
            section = section_at(loc[:-1])
            allowed = sorted(section.model_fields) if section else []
            guess = did_you_mean(str(loc[-1]), allowed)
            return f"there is no such setting{guess}; allowed here: {', '.join(allowed)}"
        case "enum" | "literal_error":
            expected = str(context["expected"]).replace(" or ", ", ").replace("'", "")
            return f"must be one of: {expected}"
        case "string_pattern_mismatch":
            return f"must be {PATTERNS[context['pattern']]}"
        case _:
            message = _MESSAGES.get(kind, details["msg"])
            return message.removeprefix("Value error, ").replace("Input should be", "must be")
