"""What the soak purges, and in which of the ways that there are to say so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from bench.soak_judge import Target
from bench.soak_load import CHAT_MODELS, EMBEDDERS, PROJECTS, TOPICS, Load

OLDER_SECONDS = 3.0
_SOFT_SHARE = 0.3
_DRY_SHARE = 0.1
# Tags most often, as people do; everything seldom, or there would be nothing to purge.
_KINDS = ["tag"] * 8 + ["key"] * 4 + ["model"] * 3 + ["older", "event", "rule", "endpoint", "all"]


@dataclass(frozen=True, slots=True)
class Order:
    """One purge as it is sent. `older_than` seconds stored is what it spares the younger for."""

    target: Target
    path: str
    body: Mapping[str, Any]
    method: str = "POST"
    soft: bool = False
    dry: bool = False
    older_than: float | None = None


def order(load: Load, keys: Mapping[str, str]) -> Order:
    """Draw one; `keys` are the digests of keys, by those of the questions."""
    kind = load.one_of([each for each in _KINDS if keys or each != "key"])
    if kind == "event":
        return _event(load)
    value, target = _named(kind, load, keys)
    chance = load.between(0.0, 1.0)
    soft, dry = chance < _SOFT_SHARE, chance > 1 - _DRY_SHARE
    members: dict[str, Any] = {"all": True} if kind == "all" else {target[0]: value}
    if kind == "older":
        members["older_than_seconds"] = OLDER_SECONDS
    members |= {"soft": True} if soft else {}
    members |= {"dry_run": True} if dry else {}
    older = OLDER_SECONDS if kind == "older" else None
    if load.between(0.0, 1.0) < 0.3:
        query = urlencode({name: _word(value) for name, value in members.items()})
        path = f"/admin/entries?{query}"
        return Order(target, path, {}, "DELETE", soft=soft, dry=dry, older_than=older)
    return Order(target, "/admin/purge", members, soft=soft, dry=dry, older_than=older)


def _named(kind: str, load: Load, keys: Mapping[str, str]) -> tuple[str, Target]:
    """What stands in the purge, and what it is about."""
    match kind:
        case "tag":
            tag = load.one_of([f"project:{name}" for name in PROJECTS] + list(TOPICS))
            return tag, ("tag", tag)
        case "key":
            digest = load.one_of(list(keys))
            return keys[digest], ("key", digest)
        case "model" | "older":
            model = load.one_of([*CHAT_MODELS, *EMBEDDERS])
            return model, ("model", model)
        case "rule":
            rule = load.one_of([*CHAT_MODELS, *EMBEDDERS])
            return rule, ("rule", rule)
        case "endpoint":
            endpoint = load.one_of(["chat", "embeddings"])
            return endpoint, ("endpoint", endpoint)
        case _:
            return "", ("all", "")


def _event(load: Load) -> Order:
    """Those of `soak_rules.EVENTS`."""
    if load.between(0.0, 1.0) < 0.5:
        model = load.one_of([*CHAT_MODELS, *EMBEDDERS])
        return Order(("model", model), "/admin/events/model_updated", {"model": model})
    project = load.one_of(PROJECTS)
    tag = ("tag", f"project:{project}")
    return Order(tag, "/admin/events/project_closed", {"project": project}, soft=True)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
