"""The channel over Redis against a real server: messages, outages, dead connections."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from proxy.backends.redis_channel import RedisChannel
from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.errors import StoreUnavailable
from tests.integration.redis_server import RedisServer, free_port, make_certificate, redis_server
from tests.waiting import until

pytestmark = pytest.mark.anyio

Make = Callable[..., RedisChannel]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[RedisChannel] = []

    def new(url: str, ca_file: str | None = None) -> RedisChannel:
        channel = RedisChannel(
            RedisConfig(url, ca_file=ca_file),
            clock=SystemClock(),
            ping_seconds=0.2,
            retry_seconds=0.02,
            longest_retry_seconds=0.1,
            publish_timeout_seconds=5.0,
        )
        made.append(channel)
        return channel

    yield new
    for channel in made:
        await channel.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, logger="magic_proxy"):
        yield lambda: [record.getMessage().split(" (")[0] for record in caplog.records]


LOST = "redis messages: none are heard for now"
BACK = "redis messages: heard again"


async def until_heard(heard: list[bytes], message: bytes, by: RedisChannel, topic: str) -> None:
    """Publish until it arrives: the server may still be on its way back."""

    async def arrived() -> bool:
        try:
            await by.publish(topic, message)
        except StoreUnavailable:
            return False
        return message in heard

    await until(arrived)


async def test_B54_messages_reach_all_who_share_the_server_in_order(
    server: RedisServer, make: Make
) -> None:
    one, other = make(server.url), make(server.url)
    heard: dict[str, list[bytes]] = {"one": [], "other": [], "aside": []}
    one.subscribe("t", heard["one"].append)
    other.subscribe("t", heard["other"].append)
    other.subscribe("t:aside", heard["aside"].append)
    await one.open()
    await other.open()
    messages = [b"%d\r\n\0\xff" % i for i in range(500)]
    for message in messages:
        await one.publish("t", message)
    await until(lambda: len(heard["one"]) == len(heard["other"]) == 500)
    assert heard == {"one": messages, "other": messages, "aside": []}


async def test_messages_are_heard_once_open_returned(server: RedisServer, make: Make) -> None:
    channel = make(server.url)
    heard: list[bytes] = []
    channel.subscribe("t", heard.append)
    await channel.open()
    assert channel.listening
    await channel.publish("t", b"1")
    await until(lambda: heard == [b"1"])


async def test_a_topic_that_is_subscribed_to_late_is_heard_too(
    server: RedisServer, make: Make
) -> None:
    channel = make(server.url)
    await channel.open()
    heard: list[bytes] = []
    channel.subscribe("t", heard.append)
    await until_heard(heard, b"1", channel, "t")


async def test_B50_a_server_that_is_down_at_the_start_is_found_later(
    server: RedisServer, make: Make, lines: Callable[[], list[str]]
) -> None:
    server.kill()
    channel = make(server.url)
    heard: list[bytes] = []
    connected: list[int] = []
    channel.subscribe("t", heard.append)
    channel.when_connected(lambda: connected.append(1))
    await channel.open()
    assert not channel.listening
    with pytest.raises(StoreUnavailable):
        await channel.publish("t", b"0")
    await until(lambda: lines() == [LOST])
    server.start()
    await until(lambda: channel.listening)
    assert connected == [1]
    assert lines() == [LOST, BACK]
    await until_heard(heard, b"1", channel, "t")


async def test_B50_a_server_that_restarts_is_heard_again_and_that_is_told(
    server: RedisServer, make: Make, lines: Callable[[], list[str]]
) -> None:
    channel = make(server.url)
    heard: list[bytes] = []
    connected: list[int] = []
    channel.subscribe("t", heard.append)
    channel.when_connected(lambda: connected.append(1))
    await channel.open()
    assert connected == [1]
    server.kill()
    await until(lambda: not channel.listening)
    server.start()
    await until(lambda: channel.listening)
    assert connected == [1, 1]
    assert lines() == [LOST, BACK]
    await until_heard(heard, b"1", channel, "t")


async def test_B50_a_connection_that_is_dead_without_a_word_is_noticed(
    server: RedisServer, make: Make, lines: Callable[[], list[str]]
) -> None:
    channel = make(server.url)
    heard: list[bytes] = []
    channel.subscribe("t", heard.append)
    await channel.open()
    server.pause()
    await until(lambda: not channel.listening)
    assert lines() == [LOST]
    server.resume()
    await until(lambda: channel.listening)
    await until_heard(heard, b"1", channel, "t")
    assert lines()[1] == BACK


async def test_a_quiet_connection_is_kept(
    server: RedisServer, make: Make, lines: Callable[[], list[str]]
) -> None:
    channel = make(server.url)
    connected: list[int] = []
    channel.subscribe("t", lambda _: None)
    channel.when_connected(lambda: connected.append(1))
    await channel.open()

    def pinged() -> bool:
        stats = server.command("INFO", "commandstats").decode()
        calls = [line for line in stats.splitlines() if line.startswith("cmdstat_ping:calls=")]
        return bool(calls) and int(calls[0].split("=")[1].split(",")[0]) >= 5

    await until(pinged)
    assert connected == [1]
    assert lines() == []


async def test_a_listener_that_fails_keeps_nobody_from_hearing(
    server: RedisServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    channel = make(server.url)
    heard: list[bytes] = []

    def fail(message: bytes) -> None:
        raise KeyError(message)

    channel.subscribe("t", fail)
    channel.subscribe("t", heard.append)
    await channel.open()
    await channel.publish("t", b"1")
    await channel.publish("t", b"2")
    await until(lambda: heard == [b"1", b"2"])
    assert channel.listening


async def test_closing_leaves_no_connection_and_no_task(server: RedisServer, make: Make) -> None:
    before = asyncio.all_tasks()
    channel = make(server.url)
    channel.subscribe("t", lambda _: None)
    await channel.open()
    await channel.publish("t", b"1")
    await channel.close()
    await channel.close()
    await until(lambda: server.command("CLIENT", "LIST").count(b" addr=") == 1)  # who asks
    assert asyncio.all_tasks() == before
    with pytest.raises(StoreUnavailable):
        await channel.publish("t", b"1")


async def test_closing_while_the_server_is_away_does_not_wait_for_it(make: Make) -> None:
    channel = make(f"redis://127.0.0.1:{free_port()}/0")
    channel.subscribe("t", lambda _: None)
    await channel.open()
    async with asyncio.timeout(1.0):
        await channel.close()


async def test_B55_it_listens_over_tls(
    make: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    certificate = make_certificate(tmp_path_factory.mktemp("tls"))
    with redis_server(certificate=certificate) as server:
        channel = make(server.url, ca_file=str(certificate.cert_file))
        heard: list[bytes] = []
        channel.subscribe("t", heard.append)
        await channel.open()
        await until_heard(heard, b"1", channel, "t")
