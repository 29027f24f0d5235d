"""From the name that a client says to the chain of profiles that can serve it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from proxy.errors import UnknownModel
from proxy.upstream.base import Chain, Profile

# Clients choose model names: the memo is bounded in number and in length of names.
_MEMO_SIZE: Final = 1024
_MEMO_NAME_LENGTH: Final = 256


@dataclass(frozen=True, slots=True)
class Route:
    """One listed model: its own profile, and the internal names of its fallbacks in order.

    Those for requests that are too long, or filtered, are lists of their own.
    """

    profile: Profile
    fallbacks: tuple[str, ...] = ()
    context_window_fallbacks: tuple[str, ...] = ()
    content_policy_fallbacks: tuple[str, ...] = ()


class Router:
    """All model names of one configuration.

    A model that is not listed passes under its own name to `default_upstream`, unless `closed`.
    Fallbacks are not transitive: a fallback's own fallbacks do not count. A profile without a
    `model` sends the internal name. Raises `ValueError` for a fallback that is not listed.
    """

    def __init__(
        self,
        *,
        default_upstream: str,
        routes: Mapping[str, Route] | None = None,
        aliases: Mapping[str, str] | None = None,
        closed: bool = False,
    ) -> None:
        self._default = Profile(name=default_upstream, upstream=default_upstream)
        self._closed = closed
        self._resolved: dict[str | None, Chain] = {}
        self._aliases = dict(aliases or {})
        routes = routes or {}
        profiles = {
            name: replace(route.profile, model=route.profile.model or name)
            for name, route in routes.items()
        }
        self._listed = {
            name: Chain(
                name,
                (profiles[name], *_named(name, route.fallbacks, profiles)),
                _named(name, route.context_window_fallbacks, profiles),
                _named(name, route.content_policy_fallbacks, profiles),
            )
            for name, route in routes.items()
        }

    def resolve(self, model: str | None) -> Chain:
        """The chain for a client's model name; None goes to the default upstream.

        `Profile.model` is None where the client's own name is what the upstream wants. Raises
        `UnknownModel`.
        """
        chain = self._resolved.get(model)
        if chain is None:
            chain = self._resolve(model)
            if model is None or len(model) <= _MEMO_NAME_LENGTH:
                if len(self._resolved) >= _MEMO_SIZE:
                    self._resolved.clear()
                self._resolved[model] = chain
        return chain

    def _resolve(self, model: str | None) -> Chain:
        if model is None:
            return Chain(model="", profiles=(self._default,))
        internal = self._aliases.get(model, model)
        if (chain := self._listed.get(internal)) is not None:
            return Chain(
                internal,
                _for_client(chain.profiles, model),
                _for_client(chain.context_window, model),
                _for_client(chain.content_policy, model),
            )
        if self._closed:
            raise UnknownModel(f"The model {model!r} does not exist here.", param="model")
        return Chain(internal, _for_client((replace(self._default, model=internal),), model))

    def upstreams(self) -> set[str]:
        """The names of all upstreams that any route leads to."""
        listed = (profile for chain in self._listed.values() for profile in chain.every)
        return {self._default.upstream, *(profile.upstream for profile in listed)}


def _for_client(profiles: tuple[Profile, ...], model: str) -> tuple[Profile, ...]:
    return tuple(
        replace(profile, model=None) if profile.model == model else profile for profile in profiles
    )


def _named(
    name: str, fallbacks: tuple[str, ...], profiles: Mapping[str, Profile]
) -> tuple[Profile, ...]:
    for fallback in fallbacks:
        if fallback not in profiles:
            raise ValueError(f"the fallback {fallback!r} of the model {name!r} is not listed")
    return tuple(profiles[fallback] for fallback in fallbacks)
