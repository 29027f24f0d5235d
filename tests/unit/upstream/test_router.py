"""From a client's model name to the chain."""

import pytest

from proxy.errors import UnknownModel
from proxy.upstream.base import Chain, Profile
from proxy.upstream.router import Route, Router

FAST = Profile("fast", "azure", model="gpt-4o-mini", params={"temperature": 0})
SLOW = Profile("slow", "local")
ROUTES = {
    "main": Route(Profile("main", "openai", model="gpt-4o"), ("fast", "slow")),
    "fast": Route(FAST, ("slow",)),
    "slow": Route(SLOW),
}


def router(closed: bool = False) -> Router:
    return Router(
        default_upstream="openai",
        routes=ROUTES,
        aliases={"gpt4": "main", "gpt-4o": "main", "mini": "gpt-4o-mini"},
        closed=closed,
    )


def test_a_listed_model_goes_to_its_profile_then_its_fallbacks() -> None:
    chain = router().resolve("main")
    assert chain.model == "main"
    assert [(p.name, p.upstream, p.model) for p in chain.profiles] == [
        ("main", "openai", "gpt-4o"),
        ("fast", "azure", "gpt-4o-mini"),
        ("slow", "local", "slow"),
    ]
    assert chain.profiles[1].params == {"temperature": 0}


def test_an_alias_resolves_to_the_internal_name() -> None:
    chain = router().resolve("gpt4")
    assert chain.model == "main"
    assert chain.profiles[0].model == "gpt-4o"


def test_B61_a_name_that_the_upstream_wants_is_not_rewritten() -> None:
    assert router().resolve("gpt-4o").profiles[0].model is None
    assert router().resolve("slow").profiles == (SLOW,)
    assert router().resolve("unlisted").profiles[0].model is None


def test_an_unlisted_model_passes_under_its_own_name() -> None:
    assert router().resolve("o9") == Chain("o9", (Profile("openai", "openai"),))
    assert router().resolve("mini").profiles[0].model == "gpt-4o-mini"


def test_B73_an_unlisted_model_is_refused_where_models_are_closed() -> None:
    with pytest.raises(UnknownModel) as caught:
        router(closed=True).resolve("o9")
    assert caught.value.param == "model"
    assert router(closed=True).resolve("gpt4").model == "main"


def test_no_model_goes_to_the_default_upstream() -> None:
    assert router(closed=True).resolve(None) == Chain("", (Profile("openai", "openai"),))


def test_an_unknown_fallback_is_refused() -> None:
    with pytest.raises(ValueError, match="'gone' of the model 'm'"):
        Router(default_upstream="openai", routes={"m": Route(SLOW, ("gone",))})


def test_every_upstream_is_named() -> None:
    assert router().upstreams() == {"openai", "azure", "local"}
