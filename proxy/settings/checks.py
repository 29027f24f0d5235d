"""Contradictions between parts of the settings: each is refused, at its place."""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from proxy.settings.clients import OPEN
from proxy.settings.nearest import did_you_mean
from proxy.settings.store import Tier

if TYPE_CHECKING:
    from proxy.settings.models import Settings

Loc: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One contradiction, at the value (or, with `at_key`, at the name) that `loc` leads to."""

    loc: Loc
    message: str
    at_key: bool = False


def contradictions(settings: "Settings") -> list[Problem]:
    """All of them; none means that the parts fit together."""
    return [
        *_rules(settings),
        *_store(settings),
        *_upstream_names(settings),
        *_model_names(settings),
        *_cycles(settings),
        *_clients(settings),
        *_exposure(settings),
    ]


def is_loopback(host: str) -> bool:
    """True where only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _rules(settings: "Settings") -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for place, rule in enumerate(settings.cache_settings.rules):
        if rule.name in seen:
            yield Problem(
                ("cache_settings", "rules", place, "name"),
                f"rule {seen[rule.name] + 1} is called `{rule.name}` too",
            )
        seen.setdefault(rule.name, place)


def _store(settings: "Settings") -> Iterator[Problem]:
    if Tier.REDIS in settings.store.tiers and settings.store.redis.url is None:
        yield Problem(("store", "tiers"), "`redis` needs `store.redis.url`")


def _upstream_names(settings: "Settings") -> Iterator[Problem]:
    known = settings.upstreams
    if settings.default_upstream is not None and settings.default_upstream not in known:
        yield Problem(("default_upstream",), _unknown("upstream", settings.default_upstream, known))
    for name, model in settings.models.items():
        if model.upstream is not None and model.upstream not in known:
            yield Problem(("models", name, "upstream"), _unknown("upstream", model.upstream, known))


def _model_names(settings: "Settings") -> Iterator[Problem]:
    known = settings.models
    for name, model in known.items():
        for place, fallback in enumerate(model.fallbacks):
            if fallback not in known:
                yield Problem(
                    ("models", name, "fallbacks", place), _unknown("model", fallback, known)
                )
    for alias, target in settings.aliases.items():
        if alias in known:
            yield Problem(("aliases", alias), f"`{alias}` is a model already", at_key=True)
        if target not in known:
            yield Problem(("aliases", alias), _unknown("model", target, known))


def _unknown(kind: str, name: str, known: Mapping[str, object]) -> str:
    listed = ", ".join(known) if known else "none is listed"
    return f"there is no {kind} `{name}`{did_you_mean(name, known)}; known: {listed}"


def _cycles(settings: "Settings") -> Iterator[Problem]:
    """Each cycle of fallbacks once, at the step that closes it."""
    done: set[str] = set()
    for start in settings.models:
        # Depth first without recursion: the trail and, for each step, the fallbacks still to try.
        if start in done:
            continue
        trail = [start]
        ahead = [iter(enumerate(settings.models[start].fallbacks))]
        while trail:
            place, fallback = next(ahead[-1], (-1, ""))
            if place < 0:
                done.add(trail.pop())
                ahead.pop()
            elif fallback in trail:
                circle = " → ".join([*trail[trail.index(fallback) :], fallback])
                yield Problem(
                    ("models", trail[-1], "fallbacks", place), f"the fallbacks go round: {circle}"
                )
            elif fallback in settings.models and fallback not in done:
                trail.append(fallback)
                ahead.append(iter(enumerate(settings.models[fallback].fallbacks)))


def _clients(settings: "Settings") -> Iterator[Problem]:
    if settings.clients is None or settings.clients == OPEN:
        return
    names: dict[str, int] = {}
    hashes: dict[str, str] = {}
    for place, client in enumerate(settings.clients):
        if client.name in names:
            yield Problem(
                ("clients", place, "name"),
                f"client {names[client.name] + 1} is called `{client.name}` too",
            )
        names.setdefault(client.name, place)
        for index, key_hash in enumerate(client.key_hashes):
            if key_hash in hashes:
                yield Problem(
                    ("clients", place, "key_hashes", index),
                    f"client `{hashes[key_hash]}` has this key already",
                )
            hashes.setdefault(key_hash, client.name)


def _exposure(settings: "Settings") -> Iterator[Problem]:
    if settings.clients is None:
        for name, upstream in settings.upstreams.items():
            if upstream.api_keys:
                yield Problem(
                    ("upstreams", name, "api_keys"),
                    "with keys here, whoever reaches the proxy spends them: say `clients: open`, "
                    "or list clients",
                )
    host = settings.server.host
    if settings.clients == OPEN and not settings.server.insecure_open and not is_loopback(host):
        yield Problem(
            ("clients",),
            "`open` needs a loopback `server.host` such as 127.0.0.1, or "
            "`server.insecure_open: true`",
        )
