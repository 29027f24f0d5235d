"""WebSockets over bare sockets: what the two sides say passes, and nothing else is said."""

import asyncio
import threading

import aiohttp
import httpx
import pytest
from aiohttp import web

from tests.integration.contract import error_of, metrics
from tests.integration.paths import NAMES, Way, Ways
from tests.integration.raw_upstream import Seen
from tests.integration.servers import ProxyFactory
from tests.integration.test_contract_bad_input import KEYS
from tests.integration.wire import Wire
from tests.waiting import eventually

TARGET = "/v1/realtime?model=gpt-4o-realtime&x=a%2Fb"
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: realtime\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\nX-Own: 1\r\n\r\n"
)
ASKED = {
    "connection": "keep-alive, Upgrade, X-Hop",
    "upgrade": "WebSocket",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version": "13",
    "sec-websocket-protocol": "realtime, openai-beta.realtime-v1",
    "sec-websocket-extensions": "permessage-deflate; client_max_window_bits",
    "x-hop": "1",
    "authorization": "Bearer sk-own",
    "openai-beta": "realtime=v1",
}
# Text, ping, binary in two fragments with a pong between them: masked as a client must.
FROM_CLIENT = (
    b"\x81\x85\x01\x02\x03\x04idohn"
    b"\x89\x80\x09\x09\x09\x09"
    b"\x02\xfe\x00\x80\x00\x00\x00\x00" + bytes(range(128)) + b"\x8a\x80\x01\x01\x01\x01"
    b"\x80\x81\xff\xff\xff\xff\x00"
)
FROM_UPSTREAM = b"\xc1\x03\xaa\xbb\xcc" + b"\x8a\x00" + b"\x82\x7e\x01\x00" + bytes(256)
CLOSE = b"\x88\x82\x00\x00\x00\x00\x0f\xa0"  # by a client, with 4000
UPSTREAM_CLOSE = b"\x88\x06\x03\xf3oops"  # 1011


async def accepts(seen: Seen) -> bool:
    """Switch, and keep what comes."""
    await seen.peer.say(ACCEPTED)
    await seen.take_all()
    return False


def opened(way: Way, **headers: str) -> tuple[Wire, Seen]:
    """A WebSocket through the proxy, and what the upstream has of it."""
    way.upstream.serve = accepts
    wire = Wire(way.proxy.url)
    wire.request("GET", TARGET, headers={**ASKED, **headers})
    head = wire.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    wire.received = wire.received.partition(b"\r\n\r\n")[2]
    return wire, way.upstream.wait()


def ended(way: Way, end: str) -> float:
    return metrics(way.proxy).get(f'magic_proxy_websockets_total{{end="{end}"}}', 0)


def test_B60_the_handshake_passes_with_all_its_headers(way: Way) -> None:
    way.upstream.serve = accepts
    with Wire(way.proxy.url) as wire:
        wire.request("GET", TARGET, headers=ASKED)
        wire.read_until(b"\r\n\r\n")

    assert wire.status == 101
    assert wire.head["connection"] == ["Upgrade"]
    assert wire.head["upgrade"] == ["websocket"]
    assert wire.head["sec-websocket-accept"] == ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]
    assert wire.head["sec-websocket-protocol"] == ["realtime"]
    assert wire.head["sec-websocket-extensions"] == ["permessage-deflate"]
    assert wire.head["x-own"] == ["1"]
    assert "content-length" not in wire.head
    assert "transfer-encoding" not in wire.head
    seen = way.upstream.wait()
    assert seen.target == TARGET.encode()
    assert seen.values("connection") == [b"Upgrade"]
    assert seen.values("upgrade") == [b"websocket"]
    assert seen.values("x-hop") == []
    for name in ASKED.keys() - {"connection", "upgrade", "x-hop"}:
        assert seen.values(name) == [ASKED[name].encode()]


def test_B60_messages_pass_byte_for_byte_both_ways(way: Way) -> None:
    wire, seen = opened(way)
    with wire:
        for place in range(0, len(FROM_CLIENT), 7):
            wire.send(FROM_CLIENT[place : place + 7])
        seen.say(FROM_UPSTREAM)
        wire.read_until(FROM_UPSTREAM)
        eventually(lambda: len(seen.body) == len(FROM_CLIENT))

        assert bytes(seen.body) == FROM_CLIENT
        assert wire.received == FROM_UPSTREAM


def test_B60_what_the_upstream_says_with_its_101_is_not_lost(way: Way) -> None:
    async def eager(seen: Seen) -> bool:
        await seen.peer.say(ACCEPTED + FROM_UPSTREAM)
        await seen.take_all()
        return False

    way.upstream.serve = eager
    with Wire(way.proxy.url) as wire:
        wire.request("GET", TARGET, headers=ASKED)
        wire.read_until(FROM_UPSTREAM)

    assert wire.rest == FROM_UPSTREAM


def test_B60_a_megabyte_passes_each_way_at_once(way: Way) -> None:
    wire, seen = opened(way)
    up = b"\x82\xff" + (1_000_000).to_bytes(8) + b"\x00\x00\x00\x00" + b"u" * 1_000_000
    down = b"\x82\x7f" + (1_000_000).to_bytes(8) + b"d" * 1_000_000
    with wire:
        seen.say(down)
        wire.send(up)
        while len(wire.received) < len(down):
            wire._more()
        eventually(lambda: len(seen.body) == len(up))

    assert wire.received == down
    assert bytes(seen.body) == up


def test_B60_a_close_by_the_client_and_its_code_reach_the_upstream(way: Way) -> None:
    before = ended(way, "closed")
    wire, seen = opened(way)
    with wire:
        wire.send(CLOSE)
        eventually(lambda: bytes(seen.body) == CLOSE)
        seen.say(b"\x88\x02\x0f\xa0")
        seen.close()
        assert wire.read_all() == b"\x88\x02\x0f\xa0"

    eventually(lambda: ended(way, "closed") == before + 1)


def test_B60_a_close_by_the_upstream_and_its_code_reach_the_client(way: Way) -> None:
    before = ended(way, "closed")
    wire, seen = opened(way)
    with wire:
        seen.say(UPSTREAM_CLOSE)
        seen.close()
        assert wire.read_all() == UPSTREAM_CLOSE

    eventually(lambda: ended(way, "closed") == before + 1)


def test_B42_a_client_that_goes_away_closes_the_upstream(way: Way) -> None:
    before = ended(way, "client-gone")
    wire, seen = opened(way)
    wire.send(FROM_CLIENT[:9])
    wire.close()

    seen.gone.wait(1)
    assert bytes(seen.body) == FROM_CLIENT[:9], "no close is invented"
    eventually(lambda: ended(way, "client-gone") == before + 1)


def test_B42_a_client_that_goes_away_before_the_answer_closes_the_upstream(way: Way) -> None:
    async def waits(seen: Seen) -> bool:
        await seen.take_all()
        return False

    way.upstream.serve = waits
    with Wire(way.proxy.url) as wire:
        wire.request("GET", TARGET, headers=ASKED)
        seen = way.upstream.wait()

    seen.gone.wait(1)


def test_B60_an_upstream_that_goes_away_ends_the_client_without_a_close(way: Way) -> None:
    before = ended(way, "upstream-gone")
    wire, seen = opened(way)
    with wire:
        seen.say(FROM_UPSTREAM[:3])
        seen.close()
        assert wire.read_all() == FROM_UPSTREAM[:3]

    eventually(lambda: ended(way, "upstream-gone") == before + 1)


@pytest.mark.parametrize("status", [b"403 Forbidden", b"426 Upgrade Required", b"500 No"])
def test_B65_a_refusal_is_passed_on_as_the_answer_that_it_is(status: bytes, way: Way) -> None:
    async def refuses(seen: Seen) -> bool:
        await seen.peer.say(
            b"HTTP/1.1 " + status + b"\r\nX-Own: 1\r\nContent-Length: 4\r\n\r\nno: "
        )
        return True

    way.upstream.serve = refuses
    with Wire(way.proxy.url) as wire:
        wire.request("GET", TARGET, headers=ASKED)
        wire.read_all()

    assert wire.status == int(status[:3])
    assert wire.head["x-own"] == ["1"]
    assert wire.head["connection"] == ["close"], "what follows could be meant for a WebSocket"
    assert wire.rest == b"no: "


def test_B60_a_101_that_nobody_asked_for_is_an_error_of_the_upstream(way: Way) -> None:
    way.upstream.serve = accepts

    answer = httpx.get(f"{way.proxy.base_url}/files", verify=False, trust_env=False)

    assert answer.status_code == 502
    assert error_of(answer)["code"] == "upstream_protocol_error"


@pytest.mark.parametrize("later", [False, True])
def test_B60_nothing_may_follow_the_handshake_before_its_answer(later: bool, ways: Ways) -> None:
    way = ways(NAMES[0])

    async def waits(seen: Seen) -> bool:
        await seen.take_all()
        return False

    way.upstream.serve = waits
    smuggled = b"GET /v1/secret HTTP/1.1\r\nhost: x\r\n\r\n"
    lines = [f"GET {TARGET} HTTP/1.1", "host: x", *(f"{k}: {v}" for k, v in ASKED.items()), "", ""]
    head = "\r\n".join(lines)
    with Wire(way.proxy.url) as wire:
        wire.send(head.encode() + (b"" if later else smuggled))
        if later:
            way.upstream.wait()
            wire.send(smuggled)
        wire.read_all()

    assert wire.status == 400
    assert b'"too_early"' in wire.rest
    assert all(seen.target == TARGET.encode() for seen in way.upstream.seen)


def test_B60_no_request_can_wait_behind_a_handshake(ways: Ways) -> None:
    way = ways(NAMES[0])
    go_on = threading.Event()

    async def answers_slowly(seen: Seen) -> bool:
        if seen.target == b"/v1/slow":
            await _until(go_on)
            await seen.peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return True
        return await accepts(seen)

    way.upstream.serve = answers_slowly
    with Wire(way.proxy.url) as wire:
        wire.request("GET", "/v1/slow")
        way.upstream.wait()
        wire.request("GET", TARGET, headers=ASKED)
        before = metrics(way.proxy)  # so that the handshake was read by now
        wire.request("GET", "/v1/behind")
        assert metrics(way.proxy).keys() == before.keys()
        go_on.set()
        wire.read_all()

    assert b"HTTP/1.1 101" not in wire.received
    assert b"/v1/behind" not in [seen.target for seen in way.upstream.seen]


def test_B60_a_resource_by_a_pattern_that_fits_is_still_a_websocket(ways: Ways) -> None:
    way = ways(NAMES[0], {"cache_settings": {"resources": [{"paths": ["/v1/**"]}]}})
    wire, seen = opened(way)
    with wire:
        seen.say(FROM_UPSTREAM)
        wire.read_until(FROM_UPSTREAM)


def test_B63_the_model_in_the_query_leads_where_it_leads_in_a_body(ways: Ways) -> None:
    settings = {
        "upstreams": {"down": {"base_url": "http://127.0.0.1:1/v1", "api_keys": ["sk-down"]}},
        "models": {
            "talk": {"upstream": "down", "model": "theirs", "fallbacks": ["talk-too"]},
            "talk-too": {"upstream": "openai", "model": "gpt/realtime"},
        },
        "aliases": {"voice": "talk"},
        "clients": "open",
    }
    way = ways(NAMES[0], settings)
    way.upstream.serve = accepts
    with Wire(way.proxy.url) as wire:
        wire.request("GET", "/v1/realtime?a=%2F&model=voice&b=+", headers=ASKED)
        wire.read_until(b"\r\n\r\n")
    assert wire.status == 101
    assert way.upstream.wait().target == b"/v1/realtime?a=%2F&model=gpt%2Frealtime&b=+"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [("model=unknown", 404, b'"model_not_found"'), ("model=a&model=b", 400, b'"invalid_value"')],
)
def test_B73_a_model_that_leads_nowhere_is_refused_before_the_upstream(
    query: str, status: int, code: bytes, ways: Ways
) -> None:
    way = ways(NAMES[0], {"models": {"talk": {"upstream": "openai"}}, "unlisted_models": "refuse"})
    with Wire(way.proxy.url) as wire:
        wire.request("GET", f"/v1/realtime?{query}", headers=ASKED)
        wire.read_all()
    assert wire.status == status
    assert code in wire.rest
    assert way.upstream.seen == []


def test_B71_B72_who_shows_no_known_key_is_refused_before_the_upstream(ways: Ways) -> None:
    way = ways(NAMES[0], {**KEYS, "upstreams": {"openai": {"api_keys": ["sk-up"]}}})
    with Wire(way.proxy.url) as wire:
        wire.request("GET", TARGET, headers=ASKED)
        wire.read_all()

    assert wire.status == 401
    assert b'"invalid_api_key"' in wire.rest
    assert way.upstream.seen == []


def test_B71_a_browsers_key_among_the_subprotocols_counts_and_goes_no_further(ways: Ways) -> None:
    way = ways(NAMES[0], {**KEYS, "upstreams": {"openai": {"api_keys": ["sk-up"]}}})
    way.upstream.serve = accepts
    offered = "realtime, openai-insecure-api-key.mp-ann, openai-beta.realtime-v1"
    headers = {k: v for k, v in ASKED.items() if k != "authorization"}
    with Wire(way.proxy.url) as wire:
        wire.request("GET", TARGET, headers={**headers, "sec-websocket-protocol": offered})
        wire.read_until(b"\r\n\r\n")

    assert wire.status == 101
    seen = way.upstream.wait()
    assert b"mp-ann" not in seen.head
    assert seen.values("sec-websocket-protocol") == [b"realtime, openai-beta.realtime-v1"]
    assert seen.values("authorization") == [b"Bearer sk-up"]


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_B62_a_key_that_is_limited_gives_way_to_the_next(name: str, ways: Ways) -> None:
    way = ways(
        name, {"clients": "open", "upstreams": {"openai": {"api_keys": ["sk-one", "sk-two"]}}}
    )

    async def one_is_limited(seen: Seen) -> bool:
        if seen.values("authorization") == [b"Bearer sk-one"]:
            await seen.peer.say(
                b"HTTP/1.1 429 Too Many\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n"
            )
            return True
        return await accepts(seen)

    way.upstream.serve = one_is_limited
    for _ in range(2):
        with Wire(way.proxy.url) as wire:
            wire.request("GET", TARGET, headers=ASKED)
            assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")

    used = [seen.values("authorization")[0] for seen in way.upstream.seen]
    assert used == [b"Bearer sk-one", b"Bearer sk-two", b"Bearer sk-two"]


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_B43_a_client_waits_for_an_upstream_that_does_not_read(name: str, ways: Ways) -> None:
    way = ways(name)
    go_on = threading.Event()

    async def reads_later(seen: Seen) -> bool:
        await seen.peer.say(ACCEPTED)
        await seen.peer.reader.read(1)
        await _until(go_on)
        await seen.take_all()
        return False

    way.upstream.serve = reads_later
    size = 100_000_000
    with Wire(way.proxy.url) as wire:
        wire.request("GET", TARGET, headers=ASKED)
        wire.read_until(b"\r\n\r\n")
        sent = 0
        wire.pace(0.4)
        piece = bytes(1_000_000)
        wire.send(b"\x82\xff" + size.to_bytes(8) + bytes(4))
        try:
            while sent < size:
                sent += wire._socket.send(piece)
        except TimeoutError:
            pass
        go_on.set()

    # What the kernel's buffers take, and a few reads.
    assert sent < 40_000_000


async def _until(event: threading.Event) -> None:
    await asyncio.to_thread(event.wait, 30)


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_B68_a_silent_websocket_is_closed_with_a_word(name: str, ways: Ways) -> None:
    way = ways(name, {"server": {"websocket_idle_seconds": 0.3}})
    wire, seen = opened(way)
    with wire:
        wire.read_until(b"idle")
        assert wire.received == b"\x88\x06\x03\xe9idle"
        wire.send(b"\x88\x82\x00\x00\x00\x00\x03\xe9")
        wire.read_all()

    seen.gone.wait(3)
    assert bytes(seen.body) == b"\x88\x82\x00\x00\x00\x00\x03\xe9"
    eventually(lambda: ended(way, "idle") == 1)


def refused(way: Way) -> bool:
    try:
        Wire(way.proxy.url).close()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_B44_a_stop_closes_websockets_as_going_away(name: str, ways: Ways) -> None:
    way = ways(name, {"server": {"websocket_idle_seconds": 60}})
    wire, seen = opened(way)
    with wire:
        # In the middle of a message: the close has to wait for its end.
        seen.say(FROM_UPSTREAM[:-10])
        wire.read_until(FROM_UPSTREAM[:-10])
        stopping = threading.Thread(target=way.proxy.stop)
        stopping.start()
        eventually(lambda: refused(way))
        seen.say(FROM_UPSTREAM[-10:] + b"\x81\x01")
        wire.read_until(b"shutdown")
        assert wire.received == FROM_UPSTREAM + b"\x88\x0a\x03\xe9shutdown"
        wire.send(b"\x88\x82\x00\x00\x00\x00\x03\xe9")
        wire.read_all()
        stopping.join(10)

    assert not stopping.is_alive()
    assert bytes(seen.body).endswith(b"\x88\x82\x00\x00\x00\x00\x03\xe9")
    seen.gone.wait(3)
    way.proxy.start()


def test_B60_an_upgrade_that_nobody_knows_is_passed_over(ways: Ways) -> None:
    way = ways(NAMES[0])
    with Wire(way.proxy.url) as wire:
        for _ in range(2):
            wire.received = b""
            wire.request(
                "GET",
                "/v1/files",
                headers={"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c"},
            )
            wire.read_until(b"{}")
            assert wire.status == 200

    assert all(seen.values("upgrade") == [] for seen in way.upstream.seen)


@pytest.mark.anyio
async def test_B60_a_client_and_a_server_of_the_trade_understand_each_other(
    proxy: ProxyFactory,
) -> None:
    async def echoes(request: web.Request) -> web.WebSocketResponse:
        served = web.WebSocketResponse(protocols=("realtime",))
        await served.prepare(request)
        async for message in served:
            if message.data == "bye":
                await served.close(code=4001, message=b"so long")
            elif message.type is aiohttp.WSMsgType.TEXT:
                await served.send_str(message.data)
            else:
                await served.send_bytes(message.data)
        return served

    app = web.Application()
    app.router.add_get("/v1/realtime", echoes)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    blob = bytes(range(256)) * 1000
    running = await asyncio.to_thread(
        proxy, {"upstreams": {"openai": {"base_url": f"http://127.0.0.1:{port}/v1"}}}
    )
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                f"{running.base_url}/realtime", protocols=("x", "realtime"), compress=15
            ) as client,
        ):
            assert client.protocol == "realtime"
            assert client.compress == 15, "agreed between the two of them"
            for text in ("hello", "é" * 100_000):
                await client.send_str(text)
                assert (await client.receive()).data == text
            await client.send_bytes(blob)
            assert (await client.receive()).data == blob
            await client.send_str("bye")
            closed = await client.receive()
            assert (closed.type, closed.data, closed.extra) == (
                aiohttp.WSMsgType.CLOSE,
                4001,
                "so long",
            )
    finally:
        await runner.cleanup()
