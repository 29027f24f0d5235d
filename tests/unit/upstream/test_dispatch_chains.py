"""The profiles of a chain: which one follows, whose answer it is, and what passes untouched."""

import pytest

from proxy.errors import KeysExhausted, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.base import Chain, Outgoing
from tests.unit.upstream.scripted import Answer, World, body_of, chat, limited, refused, up

pytestmark = pytest.mark.anyio


async def test_B63_the_next_profile_after_the_keys() -> None:
    world = World(up("up", "a", "b"), up("back", "z"))
    first = world.on("up", any=[UpstreamUnreachable("refused")])
    second = world.on("back")
    exchange = await world.ok()
    assert (exchange.upstream, exchange.profile, exchange.fallback) == ("back", "back", True)
    assert exchange.attempts == 3
    assert first.used == ["a", "b"]
    assert [request.body for request in second.requests] == [b'{"model":"back-model"}']
    assert second.requests[0].url == "https://back.example/v1/chat/completions"


async def test_B63_attempts_leave_one_for_each_profile_that_follows() -> None:
    world = World(up("up", "a", "b", "c", "d"), up("back", "z"))
    first = world.on("up", any=[Answer(500)])
    assert (await world.ok()).upstream == "back"
    assert first.used == ["a", "b"]


async def test_B63_an_upstream_that_may_still_be_at_work_is_not_asked_again() -> None:
    world = World(up("up", "a", "b"), up("back", "z"))
    first = world.on("up", any=[UpstreamTimeout("late")])
    assert (await world.ok()).upstream == "back"
    assert first.used == ["a"]


async def test_B63_a_cooling_pool_is_passed_over() -> None:
    world = World(up("up", "a"), up("back", "z"))
    first = world.on("up", a=[limited(30)])
    assert (await world.ok()).upstream == "back"
    assert (await world.ok()).upstream == "back"
    assert first.used == ["a"]


@pytest.mark.parametrize("most", [1, 3])
async def test_B64_a_rejected_key_after_a_cooling_pool_ends_in_429(most: int) -> None:
    world = World(up("up", "a", max_attempts=most), up("back", "z"))
    world.on("up", any=[limited(30)])
    world.on("back", z=[refused()])
    cooled = await world.set.send(Chain("m", world.chain.profiles[:1]), chat())
    assert cooled.response.status == 429
    with pytest.raises(KeysExhausted) as caught:
        await world.send()
    assert caught.value.retry_after_seconds == pytest.approx(30.0)


@pytest.mark.parametrize("most", [2, 3])
async def test_B62_the_rejection_that_came_last_is_told(most: int) -> None:
    world = World(up("up", "a", max_attempts=most), up("back", "z"))
    world.on("up", any=[UpstreamUnreachable("refused")])
    world.on("back", any=[refused()])
    with pytest.raises(UpstreamError) as caught:
        await world.send()
    assert caught.value.error_code == "upstream_credentials_rejected"


async def test_B63_unrepeatable_work_is_not_given_to_the_next_profile() -> None:
    world = World(up("up", "a"), up("back", "z"))
    world.on("up", any=[UpstreamUnreachable("reset")])
    with pytest.raises(UpstreamUnreachable):
        await world.send(Outgoing("POST", "/batches", "", (), b"{}"))
    assert world.transports["back"].requests == []


async def test_B65_when_all_fail_the_last_answer_is_the_client_s() -> None:
    world = World(up("up", "a"), up("back", "z"))
    first = Answer(500, b"first")
    last = Answer(503, b"last", ((b"x-request-id", b"r1"), (b"x-should-retry", b"true")))
    world.on("up", any=[first])
    world.on("back", any=[last])
    exchange = await world.send()
    assert exchange.response.status == 503
    assert exchange.response.headers == last.headers
    assert await body_of(exchange) == b"last"
    await exchange.response.aclose()
    assert first.closed
    assert last.closed


async def test_B65_an_answer_is_better_than_no_connection() -> None:
    world = World(up("up", "a"), up("back", "z"))
    world.on("up", any=[Answer(500, b"first")])
    world.on("back", any=[UpstreamUnreachable("refused")])
    exchange = await world.send()
    assert await body_of(exchange) == b"first"
    assert exchange.upstream == "up"


async def test_B63_without_any_answer_the_last_error_is_raised() -> None:
    world = World(up("up", "a"), up("back", "z"))
    world.on("up", any=[UpstreamUnreachable("first")])
    world.on("back", any=[UpstreamUnreachable("last")])
    with pytest.raises(UpstreamUnreachable, match="last"):
        await world.send()


@pytest.mark.parametrize("status", [401, 402, 403, 429, 500, 503])
async def test_B65_a_transparent_upstream_s_errors_pass_unread_and_unretried(status: int) -> None:
    world = World(up())
    answer = Answer(
        status,
        b'{"error": 1}',
        ((b"Retry-After", b"7"), (b"x-ratelimit-reset-tokens", b"6m0s"), (b"x-request-id", b"r")),
    )
    transport = world.on(any=[answer])
    exchange = await world.send(chat(headers=((b"authorization", b"Bearer mine"),)))
    assert not answer.read
    assert exchange.response.status == status
    assert exchange.response.headers == answer.headers
    assert await body_of(exchange) == answer.body
    assert transport.used == ["mine"]
    assert exchange.attempts == 1


async def test_B61_bytes_go_out_as_they_came() -> None:
    world = World(up())
    raw = b'{ "model" :"m",\n"temperature": 1.0, "x": "\\u00e9" }\r\n'
    await world.ok(chat(raw))
    assert world.transports["up"].requests[0].body is raw


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_B71_a_refused_client_does_not_get_past_to_a_profile_with_keys(status: int) -> None:
    world = World(up(), up("back", "z"))
    world.on("up", any=[Answer(status)])
    assert (await world.ok()).response.status == status
    assert world.transports["back"].requests == []


async def test_B63_a_transparent_upstream_falls_back_on_its_own_failures() -> None:
    world = World(up(), up("back", "z"))
    world.on("up", any=[Answer(429), Answer(500), UpstreamUnreachable("refused")])
    outgoing = chat(headers=((b"authorization", b"Bearer mine"),))
    for _ in range(3):
        assert (await world.ok(outgoing)).upstream == "back"
    assert set(world.transports["back"].used) == {"z"}


async def test_B69_checked_credentials_never_go_upstream() -> None:
    world = World(up(), strip=True)
    await world.ok(chat(headers=((b"authorization", b"Bearer mine"),)))
    assert world.transports["up"].used == [""]


async def test_the_account_headers_of_the_whole_chain_count() -> None:
    world = World(up(), up("back", "z", account_headers=("X-Team", "OpenAI-Project")))
    names = world.set.account_headers(world.chain)
    assert names == (b"openai-organization", b"openai-project", b"x-team")


async def test_B70_client_credentials_count_where_any_profile_sends_them() -> None:
    world = World(up("up", "a"), up("back"))
    assert world.set.uses_client_credentials(world.chain)
    assert not world.set.uses_client_credentials(Chain("m", world.chain.profiles[:1]))
    assert not World(up(), strip=True).set.uses_client_credentials(world.chain)
