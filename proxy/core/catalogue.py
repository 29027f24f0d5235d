"""The list of models that clients may name, made of what is listed here and of upstreams' lists."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

Model: TypeAlias = dict[str, Any]

# Of a model that no upstream tells of.
_OWNER: Final = "magic-proxy"


@dataclass(frozen=True, slots=True)
class Named:
    """A name that clients may use, and whose model it is: `model` is the upstream's own name."""

    name: str
    upstream: str
    model: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All names of one configuration.

    `open_to` is the upstream whose own models can be asked for by their own names; None where only
    the listed names are served.
    """

    named: tuple[Named, ...]
    open_to: str | None

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Whose lists it takes."""
        first = () if self.open_to is None else (self.open_to,)
        return tuple(dict.fromkeys([*first, *(named.upstream for named in self.named)]))


def models_in(body: bytes) -> list[Model] | None:
    """The models of an upstream's list; None where it is none."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    models = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(models, list):
        return None
    return [each for each in models if isinstance(each, dict) and isinstance(each.get("id"), str)]


def model_object(name: str, known: Model | None = None) -> Model:
    """One model under the name that clients use, with all that its upstream tells of it."""
    if known is not None:
        return {**known, "id": name}
    return {"id": name, "object": "model", "created": 0, "owned_by": _OWNER}


def merged_list(listing: Listing, lists: Mapping[str, Sequence[Model]]) -> bytes:
    """The body of the merged list; `lists` are those of the upstreams that gave one."""
    known = {
        (upstream, model["id"]): model for upstream, models in lists.items() for model in models
    }
    models = {
        named.name: model_object(named.name, known.get((named.upstream, named.model)))
        for named in listing.named
    }
    for model in _open(listing, lists):
        models.setdefault(model["id"], model)
    return orjson.dumps({"object": "list", "data": list(models.values())})


def _open(listing: Listing, lists: Mapping[str, Sequence[Model]]) -> Iterable[Model]:
    return () if listing.open_to is None else lists.get(listing.open_to, ())
