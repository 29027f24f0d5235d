"""What every board does, over both: the contract of `proxy.upstream.board.KeyBoard`."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.backends.redis_channel import RedisChannel
from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.errors import StoreUnavailable
from proxy.upstream.allowance import Use
from proxy.upstream.board import KeyBoard, Posts
from proxy.upstream.board_disk import DiskKeyBoard
from proxy.upstream.board_redis import RedisKeyBoard
from proxy.upstream.pooled_key import KeyNews
from tests.fakes import FakeClock
from tests.integration.redis_server import RedisServer, redis_server
from tests.waiting import until

pytestmark = pytest.mark.anyio

K, L = "up:" + "a" * 32, "other.up:" + "b" * 32
# What a machine that is busy with other things may take away from a time.
NEARLY = pytest.approx
KEPT_MS = 86_400_000


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


class Medium:
    """What boards of one kind share; on the disk, time is the test's to move."""

    def __init__(self, kind: str, path: Path, server: RedisServer | None) -> None:
        self.kind = kind
        self.clock = FakeClock()
        self.heard = 0
        self._path = path
        self._server = server
        self._boards: list[KeyBoard] = []
        self._channels: list[RedisChannel] = []

    async def board(self, clock: FakeClock | None = None) -> KeyBoard:
        """One more process's, whose wall clock may be wrong."""
        board: KeyBoard
        if self._server is None:
            board = DiskKeyBoard(self._path, clock=self.clock, timeout_seconds=60.0)
        else:
            config = RedisConfig(self._server.url)
            channel = RedisChannel(config, clock=SystemClock())
            self._channels.append(channel)
            board = RedisKeyBoard(
                config,
                channel=channel,
                key_prefix="p:",
                clock=clock or SystemClock(),
                timeout_seconds=60.0,
            )
        board.open(self._hear, lambda: None)
        for channel in self._channels[-1:]:
            await channel.open()
        self._boards.append(board)
        return board

    def lose(self) -> None:
        """All that stands there is gone."""
        if self._server is not None:
            self._server.command("DEL", "p:key_states")
        for file in self._path.parent.glob(f"{self._path.name}*"):
            file.unlink()

    def pass_time(self, seconds: float) -> None:
        """As if everything had been posted so much earlier."""
        self.clock.advance(seconds)
        if self._server is not None:
            script = (
                "local all = redis.call('HGETALL', KEYS[1]) local back = tonumber(ARGV[1]) "
                "for at = 1, #all, 2 do if all[at] ~= '#' then "
                "local n, c, p, rest = string.match(all[at + 1], '^(%d+) (%d+) (-?%d+) (.*)$') "
                "local function b(v) v = tonumber(v) return v > 0 and v - back or v end "
                "redis.call('HSET', KEYS[1], all[at], string.format('%.0f %.0f %.0f %s', "
                "n - back, b(c), b(p), rest)) end end"
            )
            self._server.command("EVAL", script, "1", "p:key_states", str(round(seconds * 1000)))

    def _hear(self) -> None:
        self.heard += 1

    async def close(self) -> None:
        for board in self._boards:
            await board.close()
        for channel in self._channels:
            await channel.close()


@pytest.fixture(params=["disk", "redis"])
async def medium(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Medium]:
    server: RedisServer | None = None
    if request.param == "redis":
        server = request.getfixturevalue("server")
        server.command("FLUSHALL")
    made = Medium(request.param, tmp_path / "cache.sqlite3", server)
    yield made
    await made.close()


def about(news: KeyNews) -> tuple[object, ...]:
    """The news, with times that took a moment on their way."""
    return (
        NEARLY(news.cooling_seconds, abs=2.0),
        NEARLY(news.retired_seconds, abs=2.0),
        news.rejections,
        news.restored,
        news.reason,
    )


def plain(news: KeyNews) -> tuple[object, ...]:
    return (
        news.cooling_seconds,
        news.retired_seconds,
        news.rejections,
        news.restored,
        news.reason,
    )


async def whole(board: KeyBoard) -> Posts:
    return (await board.read(whole=True)).posts


async def news(board: KeyBoard) -> Posts:
    read = await board.read(whole=False)
    assert not read.lost
    return read.posts


COOLING = KeyNews(cooling_seconds=50.0, reason="rate limited")
RETIRED = KeyNews(retired_seconds=600.0, rejections=2, reason="status 403, key_revoked")


async def test_B66_what_one_posts_others_read_once(medium: Medium) -> None:
    one, other = await medium.board(), await medium.board()
    assert await whole(other) == {}
    await one.post({K: COOLING, L: RETIRED})
    read = await news(other)
    assert read.keys() == {K, L}
    assert plain(read[K]) == about(COOLING)
    assert plain(read[L]) == about(RETIRED)
    assert await news(other) == {}
    await one.post({L: COOLING})
    assert (await news(other)).keys() == {L}
    assert (await whole(other)).keys() == {K, L}


async def test_B66_a_later_post_shortens_nothing(medium: Medium) -> None:
    one, other = await medium.board(), await medium.board()
    await one.post({K: KeyNews(cooling_seconds=50.0, retired_seconds=600.0, rejections=3)})
    await other.post({K: KeyNews(cooling_seconds=5.0, retired_seconds=60.0, rejections=1)})
    expected = KeyNews(cooling_seconds=50.0, retired_seconds=600.0, rejections=3)
    assert plain((await whole(one))[K]) == about(expected)


async def test_B66_a_key_that_works_again_is_restored_for_all(medium: Medium) -> None:
    one, other = await medium.board(), await medium.board()
    await one.post({K: RETIRED})
    await whole(other)
    await one.post({K: KeyNews(restored=True, reason="works")})
    assert plain((await news(other))[K]) == about(KeyNews(restored=True, reason="works"))
    await one.post({K: RETIRED})
    assert plain((await news(other))[K]) == about(RETIRED)


async def test_B66_times_go_on_between_post_and_reading(medium: Medium) -> None:
    one, other = await medium.board(), await medium.board()
    await one.post({K: COOLING, L: RETIRED})
    medium.pass_time(20.0)
    read = await whole(other)
    assert plain(read[K]) == about(KeyNews(cooling_seconds=30.0, reason="rate limited"))
    medium.pass_time(100.0)
    assert plain((await whole(other))[K]) == about(KeyNews(reason="rate limited"))


async def test_B66_no_time_is_believed_that_is_longer_than_a_day(medium: Medium) -> None:
    board = await medium.board()
    await board.post({K: KeyNews(cooling_seconds=1e9, retired_seconds=1e9)})
    read = (await whole(board))[K]
    assert read.cooling_seconds <= 86_400.0
    assert read.retired_seconds <= 86_400.0


async def test_B66_a_board_that_lost_everything_says_so(medium: Medium) -> None:
    one, other = await medium.board(), await medium.board()
    await one.post({K: COOLING})
    await whole(other)
    medium.lose()

    async def lost() -> bool:
        return (await other.read(whole=False)).lost

    # The file is let go of a moment after it was removed.
    medium.clock.advance(10.0)
    await until(lost)
    await other.post({L: COOLING})
    assert (await whole(other)).keys() == {L}


async def test_B66_what_was_over_a_day_ago_is_taken_out(medium: Medium) -> None:
    board = await medium.board()
    await board.post({K: COOLING})
    medium.pass_time(86_400.0 + 60.0)
    await board.post({L: COOLING})
    assert (await whole(board)).keys() == {L}


async def test_B62_others_read_once_what_was_used_and_oneself_never(medium: Medium) -> None:
    one, other = await medium.board(), await medium.board()
    await one.tell({K: Use(2, 100), L: Use(1, 0)})
    await one.tell({K: Use(1, -40)})
    read: dict[str, Use] = {}

    async def told() -> bool:
        for name, use in (await other.read(whole=False)).uses.items():
            read[name] = read.get(name, Use()) + use
        return K in read and read[K].requests == 3

    await until(told)
    assert read == {K: Use(3, 60), L: Use(1, 0)}
    assert (await other.read(whole=True)).uses == {}
    assert (await one.read(whole=True)).uses == {}
    await other.tell({K: Use(5, 5)})
    mine: dict[str, Use] = {}

    async def heard() -> bool:
        mine.update((await one.read(whole=False)).uses)
        return bool(mine)

    await until(heard)
    assert mine == {K: Use(5, 5)}


async def test_B62_what_was_used_is_forgotten_with_the_table_and_told_anew(
    tmp_path: Path,
) -> None:
    medium = Medium("disk", tmp_path / "cache.sqlite3", None)
    one, other = await medium.board(), await medium.board()
    for _ in range(3):
        await one.tell({K: Use(1, 1)})
    assert (await other.read(whole=False)).uses == {K: Use(3, 3)}
    medium.clock.advance(120.0)
    await one.tell({L: Use(1, 1)})
    assert (await other.read(whole=False)).uses == {L: Use(1, 1)}
    medium.clock.advance(120.0)
    late = await medium.board()
    await other.tell({L: Use(7, 7)})
    assert (await late.read(whole=False)).uses == {L: Use(7, 7)}, "not what is over"
    with sqlite3.connect(tmp_path / "cache.sqlite3") as file:
        file.execute("DROP TABLE key_uses")
    file.close()
    await one.tell({K: Use(9, 9)})
    assert (await other.read(whole=False)).uses == {K: Use(9, 9)}
    await medium.close()


@pytest.mark.parametrize("seconds", [36_000.0, -36_000.0], ids=["over", "a clock stepped back"])
async def test_B62_a_process_that_starts_does_not_count_what_is_not_of_this_minute(
    tmp_path: Path, seconds: float
) -> None:
    medium = Medium("disk", tmp_path / "cache.sqlite3", None)
    await (await medium.board()).tell({K: Use(500, 9)})
    medium.clock.set_wall(medium.clock.wall() + seconds)
    late = await medium.board()
    assert (await late.read(whole=True)).uses == {}
    await medium.close()


async def test_closed_it_says_so(medium: Medium) -> None:
    board = await medium.board()
    await board.close()
    await board.close()
    with pytest.raises(StoreUnavailable):
        await board.post({K: COOLING})


class TestRedis:
    """Of Redis alone."""

    @pytest.fixture
    async def redis(self, server: RedisServer, tmp_path: Path) -> AsyncIterator[Medium]:
        server.command("FLUSHALL")
        made = Medium("redis", tmp_path / "none", server)
        yield made
        await made.close()

    async def test_B66_others_are_told_at_once(self, redis: Medium) -> None:
        one, _ = await redis.board(), await redis.board()
        before = redis.heard
        await one.post({K: COOLING})
        await until(lambda: redis.heard == before + 2)

    async def test_B66_clocks_that_are_wrong_do_not_matter(self, redis: Medium) -> None:
        fast, slow = FakeClock(), FakeClock()
        fast.set_wall(fast.wall() + 30.0)
        one, other = await redis.board(fast), await redis.board(slow)
        await one.post({K: COOLING})
        assert plain((await whole(other))[K]) == about(COOLING)

    async def test_B66_what_the_server_runs_late_lasts_no_longer(
        self, redis: Medium, server: RedisServer
    ) -> None:
        clock = SystemClock()
        one, other = await redis.board(), await redis.board()
        await one.post({L: KeyNews(cooling_seconds=1.0)})
        await one.read(whole=True)  # it knows the server's time from then on
        server.command("CLIENT", "PAUSE", "500", "WRITE")
        began = clock.monotonic()
        await one.post({K: KeyNews(cooling_seconds=10.0), L: KeyNews(cooling_seconds=0.3)})
        posted = (await other.read(whole=True)).posts
        passed = clock.monotonic() - began
        assert 9.5 < posted[K].cooling_seconds + passed < 10.2
        assert posted[L].cooling_seconds + passed < 1.2

    async def test_B66_news_of_nothing_takes_no_reason_away(self, redis: Medium) -> None:
        board = await redis.board()
        await board.post({K: KeyNews(cooling_seconds=10.0, reason="rate limited")})
        await board.post({K: KeyNews(reason="its time is over")})
        assert (await board.read(whole=True)).posts[K].reason == "rate limited"

    async def test_B66_the_hash_expires(self, redis: Medium, server: RedisServer) -> None:
        board = await redis.board()
        await board.post({K: COOLING})
        left = int(server.command("PTTL", "p:key_states")[1:])
        assert KEPT_MS - 60_000 < left <= KEPT_MS

    async def test_B66_what_somebody_else_wrote_there_is_passed_over(
        self, redis: Medium, server: RedisServer
    ) -> None:
        board = await redis.board()
        await board.post({K: COOLING})
        server.command("HSET", "p:key_states", "x", "rubbish", "y", "1 2 3", L, "a b c d e")
        assert (await whole(board)).keys() == {K}
        await board.post({L: RETIRED})
        assert plain((await whole(board))[L]) == about(RETIRED)


async def test_B66_where_the_clock_steps_back_nothing_lasts_longer_than_posted(
    tmp_path: Path,
) -> None:
    medium = Medium("disk", tmp_path / "cache.sqlite3", None)
    board = await medium.board()
    await board.post({K: COOLING})
    medium.clock.set_wall(medium.clock.wall() - 3600.0)
    assert plain((await whole(board))[K]) == about(COOLING)
    await medium.close()
