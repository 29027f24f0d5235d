"""Settings from outside the file: `MAGIC_PROXY__SECTION__FIELD`, and the command line's flags.

pydantic-settings could read such variables, but it knows neither where a value was written nor
the names that users gave (`MAGIC_PROXY__UPSTREAMS__AZURE_EU__BASE_URL` means `azure-eu`), and it
would show a secret in its errors; the merge that does is this one.
"""

import re
from collections.abc import Mapping
from typing import Any

from proxy.errors import Mistake
from proxy.settings.document import Document, Loc, Place, parse, path_text
from proxy.settings.models import DEFAULT_UPSTREAMS
from proxy.settings.types import Plain

PREFIX = "MAGIC_PROXY__"


def apply_overrides(document: Document, env: Mapping[str, str]) -> None:
    """Put the variables' values into the document; a longer name changes part of a shorter's."""
    names = sorted(
        (name for name in env if name.startswith(PREFIX)), key=lambda name: (name.count("__"), name)
    )
    for variable in names:
        place = Place(variable=variable)
        value = env[variable]
        given: Any = Plain(value)
        if value.lstrip().startswith(("[", "{")):
            flow = parse(value, "", None)
            if flow.mistakes:
                message = flow.mistakes[0].message
                document.mistakes.append(Mistake(f"{variable}: {message}"))
                continue
            given = flow.value
        steps = variable.removeprefix(PREFIX).lower().split("__")
        if not all(steps):
            document.mistakes.append(Mistake(f"{variable} names no setting"))
            continue
        _put(document, steps, given, place)


def apply_flags(document: Document, flags: Mapping[str, Any]) -> None:
    """Put values of the command line into the document; names are dotted (`server.port`)."""
    for name, value in flags.items():
        _put(document, name.split("."), value, Place(variable="the command line"))


def _put(document: Document, steps: list[str], value: Any, place: Place) -> None:
    """Set one value, making what is missing on the way."""
    document.value = _start(document.value, steps)
    parent: Any = document.value
    loc: Loc = ()
    for index, step in enumerate(steps):
        name = _existing(parent, step)
        if name is None:
            document.mistakes.append(place.mistake("there is no such item to change"))
            return
        loc = (*loc, name)
        if index == len(steps) - 1:
            parent[name] = value
            break
        inner = parent[name] if isinstance(name, int) else parent.get(name)
        if inner is None or isinstance(inner, str | int | float):
            inner = {}
        parent[name] = inner
        parent = inner
    _forget(document, loc)
    document.values[loc] = place
    document.names[loc] = place


def _start(value: Any, steps: list[str]) -> dict[str, Any]:
    """The document with short forms written out where a part of them is to be changed."""
    tree = dict(value) if isinstance(value, dict) else {}
    if len(steps) > 1 and steps[0] == "store" and isinstance(tree.get("store"), str | list):
        tree["store"] = {"tiers": tree["store"]}
    if len(steps) > 1 and steps[0] == "upstreams" and tree.get("upstreams") is None:
        tree["upstreams"] = {name: dict(given) for name, given in DEFAULT_UPSTREAMS.items()}
    return tree


def _existing(parent: Any, step: str) -> str | int | None:
    """The name that a variable's part means: variables know neither case, dashes nor dots."""
    if isinstance(parent, list):
        return int(step) if step.isdecimal() and int(step) < len(parent) else None
    for name in parent:
        if name == step or re.sub(r"[^a-z0-9]", "_", name.lower()) == step:
            return str(name)
    return step


def _forget(document: Document, loc: Loc) -> None:
    """What stood in the file at this place no longer counts, nor does what was wrong with it."""
    for places in (document.values, document.names):
        for inner in [known for known in places if known[: len(loc)] == loc]:
            del places[inner]
    gone = {known for known in document.broken if known[: len(loc)] == loc}
    document.broken -= gone
    paths = {path_text(known) for known in gone}
    document.mistakes = [known for known in document.mistakes if known.path not in paths]
