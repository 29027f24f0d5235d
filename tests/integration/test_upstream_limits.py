"""Over HTTP: a limit of requests that an upstream has at the same time, and who waits for it."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from proxy.access.clients import hash_key
from proxy.standin import Script
from tests.integration.conftest import NewAsker
from tests.integration.contract import CHAT_PATH, Asker, Site, cache_status, chat, error_of, post
from tests.integration.wire import Wire
from tests.waiting import eventually

HELD = Script(hold="busy")
WAITING = 'magic_proxy_upstream_waiting{upstream="openai"}'
IN_USE = 'magic_proxy_upstream_slots_in_use{upstream="openai"}'


def limits(**over: Any) -> dict[str, Any]:
    upstream = {"max_concurrent": 1, "max_waiting": 3, **over}
    clients = [
        {"name": name, "key_hashes": [hash_key(f"sk-{name}")]} for name in ("greedy", "modest")
    ]
    return {"upstreams": {"openai": {**upstream, "api_keys": ["up-1"]}}, "clients": clients}


@pytest.fixture
def wires() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def ask_aside(
    wires: ExitStack, asker: Asker, text: str, client: str = "greedy", *, stream: bool = False
) -> Wire:
    """A request on a connection of its own, whose answer is read later."""
    wire = wires.enter_context(Wire(asker.proxy.url))
    key = {"authorization": f"Bearer sk-{client}"}
    wire.request("POST", "/v1" + CHAT_PATH, chat(text, stream=stream), key)
    return wire


def waiting(asker: Asker, count: int) -> None:
    eventually(lambda: asker.counted(WAITING) == count)


def drained(asker: Asker) -> None:
    eventually(lambda: (asker.counted(WAITING), asker.counted(IN_USE)) == (0, 0))


def test_a_full_upstream_has_the_rest_wait_in_line_and_tenants_take_turns(
    ask: NewAsker, site: Site, wires: ExitStack
) -> None:
    asker = ask(limits())
    site.standin.app.script(HELD)
    first = ask_aside(wires, asker, "first")
    site.standin.app.wait_for_requests(1)
    lines = []
    for place, (text, client) in enumerate(
        [("greedy 1", "greedy"), ("greedy 2", "greedy"), ("modest 1", "modest")], start=1
    ):
        lines.append(ask_aside(wires, asker, text, client))
        waiting(asker, place)
    assert site.standin.app.count() == 1
    site.standin.app.gate("busy").set()
    for wire in (first, *lines):
        wire.read_until(b"\r\n\r\n")
        assert wire.status == 200
    told = [request.body for request in site.standin.app.requests[1:]]
    assert [b"greedy 1" in told[0], b"modest 1" in told[1], b"greedy 2" in told[2]] == [True] * 3
    drained(asker)


def test_who_finds_the_line_full_gets_a_429_in_the_envelope_with_a_time_to_come_again(
    ask: NewAsker, site: Site, wires: ExitStack
) -> None:
    asker = ask(limits(max_waiting=0))
    site.standin.app.script(HELD)
    ask_aside(wires, asker, "full first")
    site.standin.app.wait_for_requests(1)
    answer = asker(chat("full second"), key="sk-modest")
    assert answer.status_code == 429
    assert error_of(answer)["code"] == "upstream_queue_full"
    assert error_of(answer)["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-cache"] == "ERROR"
    withheld = 'magic_proxy_upstream_withheld_total{reason="queue-full",upstream="openai"}'
    assert asker.counted(withheld) == 1
    site.standin.app.gate("busy").set()
    drained(asker)


def test_who_waits_too_long_gets_a_429(ask: NewAsker, site: Site, wires: ExitStack) -> None:
    asker = ask(limits(max_wait_seconds=0.05))
    site.standin.app.script(HELD)
    ask_aside(wires, asker, "long first")
    site.standin.app.wait_for_requests(1)
    answer = asker(chat("long second"), key="sk-modest")
    assert (answer.status_code, error_of(answer)["code"]) == (429, "upstream_queue_timeout")
    site.standin.app.gate("busy").set()
    drained(asker)


def test_B68_who_finds_all_connections_in_use_is_told_so_and_the_circuit_stays_closed(
    ask: NewAsker, site: Site, wires: ExitStack
) -> None:
    over = {"max_concurrent": None, "max_connections": 1, "circuit": {"connect_failures": 1}}
    asker = ask(limits(timeouts={"first_byte_seconds": 0.5}, **over))
    site.standin.app.script(Script(hold="busy", hold_after=1))
    first = ask_aside(wires, asker, "connected first", stream=True)
    first.read_until(b"\r\n\r\n")
    for _ in range(2):
        answer = asker(chat("connected second"), key="sk-modest")
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "upstream_no_connection_free"
        assert answer.headers["retry-after"] == "1"
    withheld = 'magic_proxy_upstream_withheld_total{reason="no-connection-free",upstream="openai"}'
    assert asker.counted(withheld) == 2
    site.standin.app.gate("busy").set()
    assert b"[DONE]" in first.read_until(b"[DONE]")


def test_who_goes_away_while_waiting_leaves_no_slot_behind(
    ask: NewAsker, site: Site, wires: ExitStack
) -> None:
    asker = ask(limits())
    site.standin.app.script(HELD)
    first = ask_aside(wires, asker, "gone first")
    site.standin.app.wait_for_requests(1)
    # Not a cached one: a flight for the cache goes on without its client.
    gone = wires.enter_context(Wire(asker.proxy.url))
    gone.request("GET", "/v1/files/x", headers={"authorization": "Bearer sk-modest"})
    waiting(asker, 1)
    gone.close()
    waiting(asker, 0)
    site.standin.app.gate("busy").set()
    first.read_until(b"\r\n\r\n")
    drained(asker)
    assert asker(chat("gone after"), key="sk-modest").status_code == 200


def test_hits_and_followers_of_a_flight_do_not_wait(
    ask: NewAsker, site: Site, wires: ExitStack
) -> None:
    asker = ask(limits(max_waiting=0))
    asker(chat("known"), key="sk-greedy")
    site.standin.app.script(HELD)
    leader = ask_aside(wires, asker, "shared")
    site.standin.app.wait_for_requests(2)
    follower = ask_aside(wires, asker, "shared")
    hit = asker(chat("known"), key="sk-greedy")
    assert hit.headers["x-cache"] == "HIT"
    site.standin.app.gate("busy").set()
    for wire in (leader, follower):
        wire.read_until(b"\r\n\r\n")
        assert wire.status == 200
    assert site.standin.app.count(CHAT_PATH) == 2


def test_B15_a_stale_entry_serves_where_the_upstream_is_full(
    ask: NewAsker, site: Site, wires: ExitStack
) -> None:
    rule = {"model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": 0.001}
    rules = {"rules": [{**rule, "stale_if_error_seconds": 600}]}
    asker = ask({**limits(max_waiting=0), "cache_settings": rules})
    asker(chat("stale"), key="sk-greedy")
    assert asker.stored() == 1
    site.standin.app.script(HELD)
    ask_aside(wires, asker, "other")
    site.standin.app.wait_for_requests(2)
    stale = post(asker.proxy, chat("stale"), key="sk-greedy")
    assert stale.headers["x-cache"] == "STALE"
    assert cache_status(stale)["detail"] == "stale-if-error:upstream_queue_full"
    site.standin.app.gate("busy").set()
    drained(asker)
