"""What a rule takes from a request into the key, compiled once per rule and endpoint."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

from proxy.core.paths import FieldPath, Reach, Step, merge, project, prune, reaches, replace_text
from proxy.core.rules import Normalization, Rule, UnlistedFields
from proxy.core.wire import Endpoint, JsonValue

# The hashed object names the model by this member, so `model` itself stays out.
MODEL_MEMBER: Final = "internal_model_name"

_STREAMING: Final = frozenset({"stream", "stream_options"})

# How the answer travels, not what it says. One embeddings entry serves both encodings.
DELIVERY: Final = {
    Endpoint.CHAT: _STREAMING,
    Endpoint.EMBEDDINGS: _STREAMING | {"encoding_format"},
}

# Fields that change the form of the answer.
FORM_FIELDS: Final = frozenset(
    {
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
    }
)

# Fields that do not change the answer.
NO_EFFECT: Final = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)


@dataclass(frozen=True, slots=True)
class Projection:
    """A compiled rule: which members of a body enter the key, and which forbid a key.

    `listed` are the members that are taken by name, each with its reach; with `takes_all`, every
    other member is taken too, but for those in `left_out`. `excluded` are those that
    `exclude_from_key` takes out whole, `pruned` those that it reaches into; `known` are all that
    do not count as unlisted.
    """

    takes_all: bool
    listed: Mapping[str, Reach]
    excluded: frozenset[str]
    pruned: Mapping[str, Reach]
    left_out: frozenset[str]
    normalize: tuple[Normalization, ...]
    unlisted: UnlistedFields
    known: frozenset[str]

    @classmethod
    def of(cls, rule: Rule, endpoint: Endpoint) -> "Projection":
        """Compile `rule` for requests to `endpoint`."""
        takes_all = any(path.takes_all for path in rule.include_in_key)
        delivery = DELIVERY[endpoint]
        listed = _by_root(rule.include_in_key)
        if takes_all:  # `*` takes the rest of what is listed whole
            listed = {name: reach for name, reach in listed.items() if name in delivery | {"model"}}
        removed = _by_root(rule.exclude_from_key)
        excluded = frozenset(name for name, reach in removed.items() if reach is True)
        if any(path.takes_all for path in rule.exclude_from_key):
            takes_all, excluded = False, excluded | frozenset(listed)
        return cls(
            takes_all=takes_all,
            listed={name: reach for name, reach in listed.items() if name not in excluded},
            excluded=excluded,
            pruned={name: reach for name, reach in removed.items() if reach is not True},
            left_out=(delivery | {"model"} | excluded) - (listed.keys() - excluded),
            normalize=rule.normalize,
            unlisted=rule.unlisted_fields,
            known=delivery | {"model"} | excluded | listed.keys(),
        )

    def reach(self, name: str) -> Reach | None:
        """How much of the member `name` is taken; None where it stays out."""
        reach = self.listed.get(name)
        if reach is None and self.takes_all and name not in self.left_out:
            return True
        return reach

    def apply(self, fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """The members that enter the key, normalized; `fields` is never modified."""
        taken: dict[str, JsonValue] = {}
        if self.takes_all:
            left_out = self.left_out
            taken = {name: value for name, value in fields.items() if name not in left_out}
        for name, reach in self.listed.items():
            if name in fields:
                taken[name] = project(fields[name], reach)
        for name, reach in self.pruned.items():
            if name in taken:
                taken[name] = prune(taken[name], reach)
        for normalization in self.normalize:
            _normalize(taken, normalization)
        return taken

    def holds_any(self, taken: Mapping[str, JsonValue]) -> bool:
        """Whether some included path reached a value, as against the empty shells of masks."""
        return any(
            (reach := self.reach(name)) is True or (reach is not None and reaches(value, reach))
            for name, value in taken.items()
        )

    def barring(self, fields: Mapping[str, JsonValue]) -> list[str]:
        """The members that are not in the key and so forbid one, in code point order."""
        if self.takes_all:
            return []
        match self.unlisted:
            case UnlistedFields.IGNORE:
                return []
            case UnlistedFields.GUARD:
                return sorted((FORM_FIELDS - self.known).intersection(fields))
            case UnlistedFields.BYPASS:
                return sorted(fields.keys() - self.known - NO_EFFECT)
            case _:
                assert_never(self.unlisted)


def _by_root(paths: Iterable[FieldPath]) -> dict[str, Reach]:
    steps: dict[str, list[tuple[Step, ...]]] = {}
    for path in paths:
        if not path.takes_all:
            steps.setdefault(path.root, []).append(path.steps)
    return {root: merge(below) for root, below in steps.items()}


def _normalize(taken: dict[str, JsonValue], normalization: Normalization) -> None:
    path = normalization.path
    change = partial(normalization.pattern.sub, normalization.replacement)
    for name in list(taken) if path.takes_all else [path.root]:
        if name in taken:
            taken[name] = replace_text(taken[name], path.steps, change)
