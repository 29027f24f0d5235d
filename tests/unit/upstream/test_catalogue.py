"""Whose lists of models are taken for the merged one, with which credential, and for how long."""

import asyncio
from dataclasses import dataclass

import orjson
import pytest

from proxy.core.catalogue import Listing, Named
from proxy.upstream.base import Outgoing, UpstreamRequest
from proxy.upstream.catalogue import Catalogue
from tests.unit.upstream.scripted import Answer, Scripted, World, body_of, up

pytestmark = pytest.mark.anyio

ASKED = Outgoing("GET", "/models", "", ((b"authorization", b"Bearer mine"),))


def catalogue(world: World, *, closed: bool = False, others_seconds: float = 5.0) -> Catalogue:
    """One model of each upstream under a name of its own; the first upstream is the default."""
    names = list(world.transports)
    for name, transport in world.transports.items():
        models = [{"id": f"{name}-model", "owned_by": "them"}]
        transport.script["*"] = [Answer(body=orjson.dumps({"data": models}))]
    listing = Listing(
        tuple(Named(f"my-{name}", name, f"{name}-model") for name in names),
        None if closed else names[0],
    )
    return Catalogue(world.set, listing, others_seconds=others_seconds)


@dataclass
class Listed:
    """Who is said to own which model, and whether the list lacks what it should have."""

    owners: dict[str, str]
    is_partial: bool


async def listed(catalogue: Catalogue) -> Listed:
    exchange = await catalogue.send(catalogue.chain("/models"), ASKED)
    models = orjson.loads(await body_of(exchange))["data"]
    return Listed({model["id"]: model["owned_by"] for model in models}, exchange.fallback)


@pytest.mark.parametrize("closed", [False, True])
async def test_B70_a_clients_own_credential_goes_to_the_default_upstream_alone(
    closed: bool,
) -> None:
    world = World(up("main"), up("keyed", "k"), up("bare"))
    told = await listed(catalogue(world, closed=closed))
    assert {name: each.used for name, each in world.transports.items()} == {
        "main": ["mine"],
        "keyed": ["k"],
        "bare": [],
    }
    names = {"my-main": "them", "my-keyed": "them", "my-bare": "magic-proxy"}
    assert told == Listed(names if closed else {**names, "main-model": "them"}, is_partial=False)


async def test_B71_where_clients_credentials_go_nowhere_all_are_asked() -> None:
    world = World(up("main"), up("bare"), strip=True)
    told = await listed(catalogue(world))
    assert told.owners["my-bare"] == "them"
    assert world.transports["bare"].used == [""]


async def test_B70_a_list_for_which_no_credential_of_clients_is_used_is_for_all_of_them() -> None:
    world = World(up("main", "k"), up("bare"))
    merged = catalogue(world)
    assert not merged.uses_client_credentials(merged.chain("/models"))


class Hanging(Scripted):
    """It takes requests, and answers none."""

    def __init__(self) -> None:
        super().__init__()
        self.given_up = asyncio.Event()

    async def send(self, request: UpstreamRequest) -> Answer:
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up.set()
        raise AssertionError("nothing sets it")


async def test_an_upstream_that_hangs_costs_what_it_tells_but_the_default_one_is_waited_for() -> (
    None
):
    world = World(up("main"), up("keyed", "k"))
    merged, main = catalogue(world, others_seconds=0.01), world.transports["main"]
    hanging = Hanging()
    world.transports["keyed"].send = hanging.send  # type: ignore[method-assign]
    at_once = main.send

    async def later(request: UpstreamRequest) -> Answer:
        await hanging.given_up.wait()
        return await at_once(request)

    main.send = later  # type: ignore[method-assign]
    told = await listed(merged)
    owners = {"my-main": "them", "my-keyed": "magic-proxy", "main-model": "them"}
    assert told == Listed(owners, is_partial=True)
    assert world.in_flight() == 0
