"""Contradictions between parts of the settings: each is refused, at its place."""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from proxy.core.invalidation import Target, TargetKind
from proxy.core.purge import BadPurge
from proxy.settings.clients import OPEN
from proxy.settings.metadata import is_metadata_host
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
        *_clients(settings),
        *_exposure(settings),
        *_metadata(settings),
        *_events(settings),
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
        for setting, chain in model.chains.items():
            for place, fallback in enumerate(chain):
                if fallback not in known:
                    yield Problem(
                        ("models", name, setting, place), _unknown("model", fallback, known)
                    )
                elif fallback == name:  # two may, for each other: chains are not transitive
                    yield Problem(
                        ("models", name, setting, place), "a model can't stand in for itself"
                    )
    for alias, target in settings.aliases.items():
        if alias in known:
            yield Problem(("aliases", alias), f"`{alias}` is a model already", at_key=True)
        if target not in known:
            yield Problem(("aliases", alias), _unknown("model", target, known))


def _unknown(kind: str, name: str, known: Mapping[str, object]) -> str:
    listed = ", ".join(known) if known else "none is listed"
    return f"there is no {kind} `{name}`{did_you_mean(name, known)}; known: {listed}"


def _circles(follows: Mapping[str, Sequence[str | None]]) -> Iterator[tuple[str, int, str]]:
    """Each circle once: the name and the place of the step that closes it, and all of it in words.

    Steps that lead nowhere are passed over.
    """
    done: set[str] = set()
    for start in follows:
        # Depth first without recursion: the trail and, for each step, the ways still to try.
        if start in done:
            continue
        trail = [start]
        ahead = [iter(enumerate(follows[start]))]
        while trail:
            place, step = next(ahead[-1], (-1, None))
            if place < 0:
                done.add(trail.pop())
                ahead.pop()
            elif step in trail:
                circle = " → ".join([*trail[trail.index(step) :], step])
                yield trail[-1], place, circle
            elif step is not None and step in follows and step not in done:
                trail.append(step)
                ahead.append(iter(enumerate(follows[step])))


def _events(settings: "Settings") -> Iterator[Problem]:
    known = settings.invalidation
    named: dict[str, list[str | None]] = {}
    for name, event in known.items():
        named[name] = []
        for place, text in enumerate(event.targets):
            target = Target.parse(text)
            is_event = target.kind is TargetKind.EVENT
            named[name].append(target.value if is_event else None)
            problem = None
            if is_event and target.value not in known:
                problem = _unknown("event", target.value or "", known)
            elif target.value is not None and not is_event:
                problem = _no_purge(target, settings.cache_settings.key_prefix)
            if problem is not None:
                yield Problem(("invalidation", name, "targets", place), problem)
    for name, place, circle in _circles(named):
        yield Problem(("invalidation", name, "targets", place), f"the events go round: {circle}")


def _no_purge(target: Target, key_prefix: str) -> str | None:
    """Why a target without places can't be purged by."""
    try:
        target.purge({}, key_prefix=key_prefix, soft=False, dry_run=False)
    except BadPurge as error:
        return str(error).removesuffix(".")
    return None


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


def _metadata(settings: "Settings") -> Iterator[Problem]:
    for name, upstream in settings.upstreams.items():
        host = urlsplit(upstream.base_url).hostname
        if host and not upstream.allow_metadata_address and is_metadata_host(host):
            yield Problem(
                ("upstreams", name, "base_url"),
                "this is where clouds tell a machine its credentials, which clients could then "
                "read; if an API answers there, say `allow_metadata_address: true`",
            )


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
