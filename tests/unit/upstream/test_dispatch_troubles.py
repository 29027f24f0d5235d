"""Requests that are too long, or filtered, for one model go on along the chain for that."""

from collections.abc import AsyncIterator

import pytest

from proxy.errors import UpstreamUnreachable
from proxy.upstream.base import Exchange, Outgoing, Profile
from proxy.upstream.circuit import CircuitPolicy
from proxy.upstream.config import UpstreamConfig
from proxy.upstream.dispatch import UpstreamSet
from proxy.upstream.router import Route, Router
from tests.unit.upstream.scripted import Answer, World, body_of, chat, refused, up

pytestmark = pytest.mark.anyio

LONG = Answer(400, b'{"error": {"code": "context_length_exceeded"}}', ((b"x-request-id", b"r"),))
FILTERED = Answer(400, b'{"error": {"code": "content_filter"}}')
OTHER = Answer(400, b'{"error": {"code": "decimal_above_max_value"}}')


class Chained(World):
    """`m` is answered by `up`, then `back`; `long` for what is too long, `free` for the filtered.

    Each of the upstreams has its model under its own name.
    """

    def __init__(self, *configs: UpstreamConfig, long: str = "long", free: str = "free") -> None:
        configs = configs or (up("up", "a"), up("back", "b"), up("long", "l"), up("free", "f"))
        super().__init__(*configs)
        names = [config.name for config in configs]
        routes = {name: Route(Profile(name, name, model=f"{name}-model")) for name in names}
        routes["m"] = Route(
            Profile("m", names[0], model="m"),
            tuple(names[1:2]),
            tuple(long.split()),
            tuple(free.split()),
        )
        self.set = UpstreamSet(
            configs,
            Router(default_upstream=names[0], routes=routes),
            clock=self.clock,
            transport_factory=self._transport,
        )
        self.chain = self.set.resolve("m")

    def asked(self) -> list[str]:
        return [name for name, transport in self.transports.items() for _ in transport.requests]


@pytest.mark.parametrize(("answer", "instead"), [(LONG, "long"), (FILTERED, "free")])
async def test_a_trouble_leads_to_its_own_chain(answer: Answer, instead: str) -> None:
    world = Chained()
    world.on("up", any=[answer])
    exchange = await world.ok()
    assert (exchange.upstream, exchange.profile, exchange.fallback) == (instead, instead, True)
    assert exchange.attempts == 2
    assert world.asked() == ["up", instead]
    request = world.transports[instead].requests[0]
    assert request.body == b'{"model":"%s-model"}' % instead.encode()
    assert answer.closed


async def test_another_mistake_passes_as_it_came() -> None:
    world = Chained()
    world.on("up", any=[OTHER])
    exchange = await world.send()
    assert (exchange.response.status, await body_of(exchange)) == (400, OTHER.body)
    assert world.asked() == ["up"]


async def test_without_a_chain_of_its_own_a_trouble_passes_unread() -> None:
    world = World(up("up", "a"), up("back", "z"))
    answer = Answer(400, LONG.body)
    world.on("up", any=[answer])
    exchange = await world.send()
    assert not answer.read
    assert await body_of(exchange) == LONG.body
    assert world.transports["back"].requests == []


async def test_only_the_chain_for_this_trouble_counts() -> None:
    world = Chained(long="long", free="")
    world.on("up", any=[FILTERED])
    assert await body_of(await world.send()) == FILTERED.body
    assert world.asked() == ["up"]


async def test_the_chain_is_tried_in_order_and_its_last_answer_passes() -> None:
    configs = [up(name, name, max_attempts=9) for name in ("up", "back", "long", "free")]
    world = Chained(*configs, long="long free back")
    last = Answer(400, LONG.body + b" ")
    for name, answer in (("up", LONG), ("free", LONG), ("back", last)):
        world.on(name, any=[answer])
    world.on("long", any=[UpstreamUnreachable("reset")])
    assert await body_of(await world.send()) == last.body
    assert sorted(world.asked()) == ["back", "free", "long", "up"]


async def test_a_trouble_after_a_failure_leads_there_too() -> None:
    world = Chained()
    world.on("up", any=[Answer(500)])
    world.on("back", any=[LONG])
    assert (await world.ok()).upstream == "long"


async def test_one_trouble_after_the_other_and_nobody_twice() -> None:
    configs = [up(name, name, max_attempts=9) for name in ("up", "back", "long", "free")]
    world = Chained(*configs, long="long", free="free long")
    world.on("up", any=[LONG])
    world.on("long", any=[FILTERED])
    world.on("free", any=[LONG])
    exchange = await world.send()
    assert await body_of(exchange) == LONG.body
    assert world.asked() == ["up", "long", "free"]


async def test_where_the_chain_for_it_fails_the_refusal_passes() -> None:
    world = Chained()
    world.on("up", any=[LONG])
    world.on("long", any=[UpstreamUnreachable("reset")])
    assert await body_of(await world.send()) == LONG.body


async def test_the_attempts_stay_capped() -> None:
    world = Chained(
        up("up", "a", max_attempts=1), up("back", "b"), up("long", "l"), up("free", "f")
    )
    world.on("up", any=[LONG])
    assert await body_of(await world.send()) == LONG.body
    assert world.asked() == ["up"]


async def test_a_trouble_touches_neither_key_nor_circuit() -> None:
    circuit = CircuitPolicy(failure_rate=0.1, min_calls=1)
    world = Chained(
        up("up", "a", circuit=circuit), up("back", "b"), up("long", "l"), up("free", "f")
    )
    world.on("up", any=[LONG])
    for _ in range(20):
        await world.ok()
    assert {state.value for state in world.states()} == {"available"}
    assert world.set.circuit_states()["up"].value == "closed"


async def test_B71_a_client_whose_credential_is_refused_gets_nowhere_else() -> None:
    world = Chained(up(), up("back", "b"), up("long", "l"), up("free", "f"))
    for answer in (refused(), Answer(403, b'{"error": {"code": "invalid_api_key"}}'), Answer(402)):
        world.on("up", any=[answer])
        assert (await world.ok()).response.status == answer.status
    assert world.asked() == ["up"] * 3


async def test_a_moderated_prompt_of_a_client_s_own_key_goes_on() -> None:
    world = Chained(up(), up("back", "b"), up("long", "l"), up("free", "f"))
    flagged = (
        b'{"error": {"code": 403, "message": "x requires moderation. Your input was flagged"}}'
    )
    world.on("up", any=[Answer(403, flagged)])
    assert (await world.ok()).upstream == "free"


async def source() -> AsyncIterator[bytes]:
    yield b"upload"


async def test_B63_an_upload_is_not_sent_twice_for_it() -> None:
    world = Chained()
    world.on("up", any=[LONG])
    outgoing = Outgoing("POST", "/files", "", (), source())
    assert await body_of(await world.send(outgoing)) == LONG.body


async def test_every_profile_counts_for_scope_and_batches() -> None:
    world = Chained(
        up("up", "a"),
        up("back", "b"),
        up("long", max_batch=7),
        up("free", account_headers=("X-T",)),
    )
    assert world.set.uses_client_credentials(world.chain)
    assert world.set.max_batch(world.chain) == 7
    assert b"x-t" in world.set.account_headers(world.chain)


async def test_the_names_of_those_who_answer_are_shown_or_kept() -> None:
    async def shown(world: World) -> list[str | None]:
        exchanges: list[Exchange] = [await world.ok()]
        world.on("up", any=[Answer(500)])
        exchanges.append(await world.ok())
        exchanges.append(await world.set.send(world.set.resolve(None), chat()))
        return [exchange.shown_as for exchange in exchanges]

    assert await shown(Chained()) == ["up/m", "back", "up"]
    hidden = Chained()
    hidden.set._shows_names = False
    assert await shown(hidden) == [None, None, None]


def test_a_special_fallback_that_is_not_listed_is_refused() -> None:
    routes = {"m": Route(Profile("m", "up"), context_window_fallbacks=("gone",))}
    with pytest.raises(ValueError, match="gone"):
        Router(default_upstream="up", routes=routes)


@pytest.mark.parametrize("setting", ["context_window_fallbacks", "content_policy_fallbacks"])
def test_a_special_fallback_needs_its_upstream(setting: str) -> None:
    routes = {
        "m": Route(Profile("m", "up"), **{setting: ("other",)}),
        "other": Route(Profile("other", "gone")),
    }
    router = Router(default_upstream="up", routes=routes)
    assert router.upstreams() == {"up", "gone"}
    assert router.resolve("m").every[1].upstream == "gone"
