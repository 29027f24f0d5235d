"""Pools that hear of each other over a board: in the background, and each alone without it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from proxy.errors import StoreUnavailable
from proxy.upstream.allowance import Need, Use
from proxy.upstream.board import Posts, Read, Uses, added
from proxy.upstream.config import KeySecret
from proxy.upstream.key_sharing import KeySharing
from proxy.upstream.keypool import KeyPool
from proxy.upstream.pooled_key import KeyNews, KeyState
from proxy.upstream.verdict import KeyLimited, KeyRejected, KeyWorks, Verdict
from tests.fakes import FakeClock
from tests.waiting import until

pytestmark = pytest.mark.anyio

SECRETS = [KeySecret("sk-first"), KeySecret("sk-second")]


class StillClock(FakeClock):
    """Who sleeps takes turns with others; time stands still."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.001)


@dataclass
class FakeWall:
    """What boards hang on: the last news of each key, with its number; `down` fails everything."""

    down: bool = False
    numbers: dict[str, tuple[int, KeyNews]] = field(default_factory=dict)
    posts: list[Posts] = field(default_factory=list)
    tellers: list[Callable[[], None]] = field(default_factory=list)
    boards: list["FakeBoard"] = field(default_factory=list)
    tried: int = 0

    def ask(self) -> None:
        self.tried += 1
        if self.down:
            raise StoreUnavailable("the wall is down")


class FakeBoard:
    def __init__(self, wall: FakeWall) -> None:
        self.poll_seconds = 5.0
        self._wall = wall
        self._seen = 0
        self.heard_uses: list[tuple[str, Use]] = []
        wall.boards.append(self)
        self.reconnect: Callable[[], None] = lambda: None

    def open(self, heard: Callable[[], None], connected: Callable[[], None]) -> None:
        self._wall.tellers.append(heard)
        self.reconnect = connected

    async def post(self, posts: Posts) -> None:
        await asyncio.sleep(0)
        self._wall.ask()
        self._wall.posts.append(posts)
        for name, news in posts.items():
            self._wall.numbers[name] = (len(self._wall.posts), news)
        for heard in self._wall.tellers:
            heard()

    async def tell(self, uses: Uses) -> None:
        self._wall.ask()
        for board in self._wall.boards:
            if board is not self:
                board.heard_uses += uses.items()
        for heard in self._wall.tellers:
            heard()

    async def read(self, *, whole: bool) -> Read:
        await asyncio.sleep(0)
        self._wall.ask()
        since = 0 if whole else self._seen
        highest = max((number for number, _ in self._wall.numbers.values()), default=0)
        lost = highest < self._seen
        self._seen = highest
        read = self._wall.numbers.items()
        posts = {name: news for name, (number, news) in read if number > since}
        uses, self.heard_uses = added(self.heard_uses), []
        return Read(posts, lost, uses)

    async def close(self) -> None:
        """Nothing is held."""


class Process:
    """One worker: a pool, and what shares it."""

    def __init__(self, wall: FakeWall) -> None:
        self.clock = StillClock()
        self.pool = KeyPool(SECRETS, retire_seconds=600.0)
        self.board = FakeBoard(wall)
        self.sharing = KeySharing(self.board, self.clock)

    def start(self) -> None:
        self.sharing.open()
        self.sharing.follow({"up": self.pool})

    def use(self, verdict: Verdict, number: int = 0) -> None:
        now = self.clock.monotonic()
        lease = self.pool.acquire(now, {0, 1} - {number})
        assert lease is not None
        self.pool.report(lease, verdict, now)
        self.pool.release(lease)

    def states(self) -> list[KeyState]:
        return [status.state for status in self.pool.states(self.clock.monotonic())]

    async def until(self, *states: KeyState) -> None:
        await until(lambda: self.states() == list(states))

    async def close(self) -> None:
        await self.sharing.close()


AVAILABLE, COOLING, RETIRED = KeyState.AVAILABLE, KeyState.COOLING, KeyState.RETIRED


@pytest.fixture
def wall() -> FakeWall:
    return FakeWall()


@pytest.fixture
async def pair(wall: FakeWall) -> AsyncIterator[tuple[Process, Process]]:
    made = Process(wall), Process(wall)
    for process in made:
        process.start()
    yield made
    for process in made:
        await process.close()


Pair = tuple[Process, Process]


async def test_B66_what_one_learns_the_other_knows(pair: Pair) -> None:
    one, other = pair
    one.use(KeyLimited(30.0))
    one.use(KeyRejected("status 401"), number=1)
    await other.until(COOLING, RETIRED)
    assert other.pool.soonest(other.clock.monotonic()) == pytest.approx(30.0)


async def test_B66_a_key_that_works_again_works_for_all(pair: Pair) -> None:
    one, other = pair
    one.use(KeyRejected("status 401"))
    await other.until(RETIRED, AVAILABLE)
    for process in pair:
        process.clock.advance(600.0)
    other.use(KeyWorks())
    await one.until(AVAILABLE, AVAILABLE)


async def test_B66_who_comes_later_learns_what_holds(pair: Pair, wall: FakeWall) -> None:
    pair[0].use(KeyLimited(30.0))
    await pair[1].until(COOLING, AVAILABLE)
    late = Process(wall)
    late.start()
    await late.until(COOLING, AVAILABLE)
    await late.close()


async def test_B66_many_changes_are_few_posts_and_none_is_told_back(
    pair: Pair, wall: FakeWall
) -> None:
    one, other = pair
    now = one.clock.monotonic()
    leases = [one.pool.acquire(now, {1}) for _ in range(50)]
    for seconds, lease in enumerate(leases, start=10):
        assert lease is not None
        one.pool.report(lease, KeyLimited(float(seconds)), now)
        one.pool.release(lease)
    await other.until(COOLING, AVAILABLE)
    tried = wall.tried
    await until(lambda: wall.tried > tried + 10)
    assert len(wall.posts) == 1
    assert other.pool.soonest(now) == pytest.approx(59.0)


async def test_B66_without_a_board_each_works_alone_and_is_told_when_it_is_back(
    pair: Pair, wall: FakeWall, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = pair
    wall.down = True
    one.use(KeyLimited(30.0))
    other.use(KeyRejected("status 401"), number=1)
    tried = wall.tried
    await until(lambda: wall.tried > tried + 10)
    assert (one.states(), other.states()) == ([COOLING, AVAILABLE], [AVAILABLE, RETIRED])
    assert [record for record in caplog.records if record.name != "magic_proxy.upstream"] == []
    assert caplog.records == [], "its circuit speaks for the board, once"
    wall.down = False
    for process in pair:
        await process.until(COOLING, RETIRED)


async def test_B66_a_restored_key_is_told_of_though_the_board_was_down_then(
    pair: Pair, wall: FakeWall
) -> None:
    one, other = pair
    one.use(KeyRejected("status 401"))
    await other.until(RETIRED, AVAILABLE)
    for process in pair:
        process.clock.advance(600.0)
    wall.down = True
    tried = wall.tried
    one.use(KeyWorks())
    await until(lambda: wall.tried > tried + 4)
    one.use(KeyLimited(40.0))
    await until(lambda: wall.tried > tried + 8)
    wall.down = False
    await other.until(COOLING, AVAILABLE)
    assert one.states() == [COOLING, AVAILABLE]


async def test_B66_what_was_owed_to_the_board_is_told_as_it_stands_then(
    pair: Pair, wall: FakeWall
) -> None:
    one, other = pair
    wall.down = True
    tried = wall.tried
    one.use(KeyLimited(30.0))
    await until(lambda: wall.tried > tried + 4)
    one.clock.advance(20.0)
    wall.down = False
    await other.until(COOLING, AVAILABLE)
    assert other.pool.soonest(other.clock.monotonic()) == pytest.approx(10.0)


async def test_B66_what_a_board_has_lost_is_given_back_to_it(pair: Pair, wall: FakeWall) -> None:
    one, other = pair
    one.use(KeyLimited(30.0))
    await other.until(COOLING, AVAILABLE)
    wall.numbers.clear()
    await until(lambda: len(wall.numbers) == 1)
    tried = wall.tried
    await until(lambda: wall.tried > tried + 10)
    assert len(wall.posts) <= 3, "what stands there again is not posted over and over"


async def test_B66_a_reload_goes_on_sharing_what_requests_under_way_learn(pair: Pair) -> None:
    one, other = pair
    now = one.clock.monotonic()
    lease = one.pool.acquire(now, {1})
    assert lease is not None
    renewed = KeyPool(SECRETS, retire_seconds=600.0)
    renewed.take_over(one.pool)
    one.sharing.follow({"up": renewed})
    one.pool.report(lease, KeyLimited(30.0), now)
    await other.until(COOLING, AVAILABLE)


async def test_B66_other_upstreams_and_keys_are_passed_over(pair: Pair, wall: FakeWall) -> None:
    posted = {
        f"other:{SECRETS[0].digest}": KeyNews(cooling_seconds=30.0),
        "up:unknown": KeyNews(cooling_seconds=30.0),
        "rubbish": KeyNews(cooling_seconds=30.0),
        f"up:{SECRETS[1].digest}": KeyNews(cooling_seconds=30.0),
    }
    wall.numbers = {name: (10, news) for name, news in posted.items()}
    for process in pair:
        await process.until(AVAILABLE, COOLING)


async def test_B66_what_others_found_is_one_line_by_fingerprint(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "magic_proxy.upstream"):
        pair[0].use(KeyLimited(30.0))
        await pair[1].until(COOLING, AVAILABLE)
    assert [record.getMessage() for record in caplog.records] == [
        f"upstream up: {SECRETS[0].fingerprint} is cooling for 30 s: rate limited, as others found"
    ]


async def test_B62_what_others_use_counts_for_a_limit_of_the_settings(wall: FakeWall) -> None:
    one, other = Process(wall), Process(wall)
    for process in (one, other):
        process.pool = KeyPool([KeySecret("sk-a", 1.0, 10, 1000)])
        process.start()
    now = one.clock.monotonic()
    leases = [one.pool.acquire(now, need=Need(prompt_tokens=200)) for _ in range(4)]

    def left(process: Process) -> list[int]:
        return [limit.left for limit in process.pool.states(now)[0].limits]

    assert left(one) == [6, 200]
    await until(lambda: left(other) == [6, 200])
    for lease in leases:
        assert lease is not None
        one.pool.release(lease)
        one.pool.spent(lease, 50)
    await until(lambda: left(other) == [6, 800])
    assert left(one) == [6, 800], "its own use is not told back to it"
    for process in (one, other):
        await process.close()


async def test_B69_the_board_never_sees_a_key(pair: Pair, wall: FakeWall) -> None:
    pair[0].use(KeyRejected("status 401"))
    await pair[1].until(RETIRED, AVAILABLE)
    assert "sk-first" not in repr(wall.posts)
    (name,) = wall.posts[0]
    assert name == f"up:{SECRETS[0].digest}"
    assert len(SECRETS[0].digest) == 32
