"""The table of the hot path: bounded, and with nothing in it that is out of date."""

import re
from typing import Any, cast

import pytest

from proxy.core.invalidation import Events
from proxy.core.outcome import Outcome, XCache
from proxy.core.wire import Headers
from proxy.edge.hot_table import HotTable
from proxy.engine.base import Answer, Repeatable
from proxy.runtime import Runtime, Snapshot
from proxy.runtime.request_ids import RequestIds
from tests.fakes import FakeClock


class FakeService:
    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.evicted: set[str] = set()
        self.stored_at: dict[str, float] = {}

    def version(self, key: str) -> int:
        return self.versions.get(key, 0)

    def is_at_hand(self, key: str, stored_at: float) -> bool:
        return key not in self.evicted and stored_at == self.stored_at.get(key, stored_at)


class Recorder:
    def __init__(self) -> None:
        self.outcomes: list[tuple[Outcome, str]] = []

    def told(self, outcome: Outcome) -> None:
        raise AssertionError("a repetition is told as one")

    def told_again(self, outcome: Outcome, request_id: str) -> None:
        self.outcomes.append((outcome, request_id))


class FakeRuntime:
    """What the table asks a runtime for."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.request_ids = RequestIds()
        self.told = Recorder()
        self.snapshot = self.new_snapshot()

    def new_snapshot(self) -> Snapshot:
        return Snapshot(
            service=cast("Any", FakeService()),
            resources=cast("Any", None),
            forwarder=cast("Any", None),
            access=cast("Any", None),
            observer=self.told,
            websocket_idle_seconds=None,
            max_body_bytes=1000,
            key_prefix="",
            events=Events(),
        )


class Table:
    """A table with the runtime that it asks, and short ways to use both."""

    def __init__(self, max_bytes: int = 100_000) -> None:
        self.runtime = FakeRuntime()
        self.table = HotTable(cast("Runtime", self.runtime), max_bytes)

    def remember(
        self,
        request: bytes,
        body: bytes | None = None,
        *,
        lifetime: float = 100.0,
        repeats: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        snapshot: Snapshot | None = None,
        same: Headers = ((b"content-type", b"application/json"),),
    ) -> None:
        now = self.runtime.clock.wall()
        outcome = Outcome(x_cache=XCache.HIT, endpoint="chat", status=200, age_seconds=0.0)
        until = now + (lifetime if repeats is None else repeats)
        key = request.decode("latin-1")
        number = (snapshot or self.runtime.snapshot).service.version(key)
        repeatable = Repeatable(
            key, number, now, now + lifetime, until, outcome, same, with_key=False
        )
        own = bytes(bytearray(b"{}"))  # a body that is no other request's
        answer = Answer(200, [], own if body is None else body, repeatable)
        self.table.met(request)
        self.table.remember(request, headers, snapshot or self.runtime.snapshot, answer)

    def answer(self, request: bytes) -> bytes | None:
        """The whole response."""
        reply = self.table.answer(request)
        return None if reply is None else b"".join(reply)

    def holds(self, request: bytes) -> bool:
        return self.table.answer(request) is not None

    @property
    def bytes(self) -> int:
        return self.table._bytes


def test_a_request_that_was_remembered_is_answered_and_told() -> None:
    table = Table()
    table.remember(b"one", b"1" * 20)
    table.runtime.clock.advance(5)

    answer = table.answer(b"one")

    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert b"\r\ncache-status: magic-proxy; hit; ttl=95" in head
    assert b"\r\nage: 5" in head
    assert b"\r\ncontent-length: 20" in head
    assert body == b"1" * 20
    ((told, request_id),) = table.runtime.told.outcomes
    assert (told.x_cache, told.duration_seconds) == (XCache.HIT, 0.0)
    assert f"\r\nx-request-id: {request_id}\r\n".encode() in head


def test_only_equal_bytes_are_answered() -> None:
    table = Table()
    table.remember(b"one")

    assert not any(table.holds(other) for other in (b"on", b"one ", b"One", b"", b"two"))
    assert table.runtime.told.outcomes == []


def test_B56_the_oldest_go_when_it_is_full() -> None:
    table = Table()
    table.remember(b"0")
    each = table.bytes
    table = Table(max_bytes=each * 3)
    for number in range(5):
        table.remember(b"%d" % number)
        assert table.bytes <= each * 3

    assert [table.holds(b"%d" % number) for number in range(5)] == [False] * 2 + [True] * 3
    assert table.bytes == each * 3


def test_B56_one_that_is_remembered_anew_is_the_youngest_and_counted_once() -> None:
    table = Table()
    table.remember(b"0")
    each = table.bytes
    table = Table(max_bytes=each * 2)
    for request in (b"0", b"1", b"0", b"0", b"2"):
        table.remember(request)

    assert [table.holds(request) for request in (b"0", b"1", b"2")] == [True, False, True]
    assert table.bytes == each * 2


def test_B56_what_is_larger_than_the_table_empties_nothing() -> None:
    table = Table(max_bytes=5_000)
    table.remember(b"small")
    table.remember(b"large", b"x" * 5_000)

    assert table.holds(b"small")
    assert not table.holds(b"large")


def test_B56_what_grew_too_large_leaves_no_older_answer() -> None:
    table = Table(max_bytes=5_000)
    table.remember(b"one")
    table.remember(b"one", b"x" * 5_000)

    assert not table.holds(b"one")
    assert table.bytes == 0


def test_B56_requests_and_answers_both_count() -> None:
    sizes = []
    for request, body in ((b"r", b"b"), (b"r" * 301, b"b"), (b"r", b"b" * 9)):
        table = Table()
        table.remember(request, body)
        sizes.append(table.bytes)

    assert [size - sizes[0] for size in sizes] == [0, 300, 8]


@pytest.mark.parametrize("count", [1, 7])
def test_B56_the_size_is_nothing_when_all_is_forgotten(count: int) -> None:
    table = Table()
    for number in range(count):
        table.remember(b"%d" % number, b"x" * number, lifetime=10.0 + number)
    table.remember(b"0", b"another", lifetime=10.0)
    assert table.bytes > 0

    table.runtime.clock.advance(10.0 + count)

    assert not any(table.holds(b"%d" % number) for number in range(count))
    assert table.bytes == 0
    assert not table.table._hot
    assert not table.table._uses


def test_B15_fresh_means_before_the_end() -> None:
    table = Table()
    table.remember(b"one", lifetime=10.0)

    table.runtime.clock.advance(9.5)
    assert table.holds(b"one")
    table.runtime.clock.advance(0.5)
    assert not table.holds(b"one")
    table.runtime.clock.set_wall(table.runtime.clock.wall() - 5)
    assert not table.holds(b"one"), "it does not come back"


def test_B15_what_may_have_to_be_refreshed_is_handed_over_while_it_is_fresh() -> None:
    table = Table()
    table.remember(b"one", lifetime=60.0, repeats=38.0)

    table.runtime.clock.advance(37.5)
    answer = table.answer(b"one")
    assert answer is not None
    assert b"hit; ttl=22" in answer, "what is told is the time that is left, not that of the table"
    table.runtime.clock.advance(0.5)
    assert not table.holds(b"one")
    assert table.bytes == 0, "whoever answers it next may offer it again"


def test_B15_a_clock_that_stepped_back_makes_no_negative_age() -> None:
    table = Table()
    table.remember(b"one")
    table.runtime.clock.set_wall(table.runtime.clock.wall() - 50)

    answer = table.answer(b"one")

    assert answer is not None
    assert b"\r\nage: 0\r\n" in answer


def replace_entry(table: Table, key: str) -> None:
    versions = cast("FakeService", table.runtime.snapshot.service).versions
    versions[key] = versions.get(key, 0) + 1


def test_B13_an_entry_that_was_replaced_is_asked_for_again_and_no_other() -> None:
    table = Table()
    table.remember(b"one")
    table.remember(b"two")
    replace_entry(table, "one")

    assert not table.holds(b"one")
    assert table.holds(b"two")
    assert not table.holds(b"one"), "it does not come back"
    table.remember(b"one")
    assert table.holds(b"one")


def test_B74_other_settings_empty_it() -> None:
    table = Table()
    table.remember(b"one")
    table.runtime.snapshot = table.runtime.new_snapshot()

    assert not table.holds(b"one")
    table.remember(b"two")
    assert table.holds(b"two")
    assert not table.holds(b"one")


def test_B74_an_answer_under_settings_that_were_replaced_is_not_taken() -> None:
    table = Table()
    old = table.runtime.snapshot
    table.runtime.snapshot = table.runtime.new_snapshot()
    table.remember(b"new")

    table.remember(b"old", snapshot=old)

    assert table.holds(b"new")
    assert not table.holds(b"old")


@pytest.mark.parametrize("name", [b"cache-control", b"connection", b"expect", b"upgrade"])
def test_B13_a_request_with_a_header_that_changes_the_answer_is_not_taken(name: bytes) -> None:
    table = Table()
    table.remember(b"one", headers=((b"host", b"h"), (name, b"x")))
    table.remember(b"two", headers=((b"host", b"h"), (b"x-other", b"x")))

    assert not table.holds(b"one")
    assert table.holds(b"two")


def test_B10_neither_a_stream_nor_an_answer_for_once_is_taken() -> None:
    table = Table()
    table.table.met(b"one")

    table.table.remember(b"one", (), table.runtime.snapshot, Answer(200, [], b"{}", None))

    assert not table.holds(b"one")


def test_B10_a_stored_header_that_could_end_its_line_is_not_sent() -> None:
    table = Table()

    table.remember(b"one", same=((b"openai-version", b"1\r\nset-cookie: a"),))

    assert not table.holds(b"one")


def test_a_request_is_kept_when_it_comes_again() -> None:
    table = Table()
    table.remember(b"other")
    answer = Answer(200, [], b"{}", next(iter(table.table._hot.values())).repeatable)
    snapshot = table.runtime.snapshot

    table.table.remember(b"one", (), snapshot, answer)
    assert not table.holds(b"one"), "most requests never come back"
    table.table.remember(b"one", (), snapshot, answer)
    assert table.holds(b"one")


def test_B57_what_the_memory_tier_lost_is_not_given_for_longer_than_a_second() -> None:
    table = Table()
    table.remember(b"one", lifetime=60.5)
    assert table.holds(b"one")
    cast("FakeService", table.runtime.snapshot.service).evicted.add("one")

    table.runtime.clock.advance(1.0)

    assert not table.holds(b"one")
    assert table.bytes == 0


def test_B57_what_another_entry_took_the_place_of_is_not_given_for_longer_than_a_second() -> None:
    table = Table()
    table.remember(b"one", lifetime=60.5)
    assert table.holds(b"one")
    service = cast("FakeService", table.runtime.snapshot.service)
    service.stored_at["one"] = table.runtime.clock.wall() + 0.5

    table.runtime.clock.advance(1.0)

    assert not table.holds(b"one")


def test_B15_age_and_time_left_are_those_of_the_moment() -> None:
    table = Table()
    table.remember(b"one", lifetime=10.5)
    told = []
    for _ in range(12):
        answer = table.answer(b"one")
        assert answer is not None
        told.append(tuple(int(n) for n in re.findall(rb"(?:ttl=|age: )(\d+)", answer)))
        table.runtime.clock.advance(0.25)

    exact = [0.25 * number for number in range(12)]
    assert told == [(int(10.5 - passed), int(passed)) for passed in exact]


def test_B56_a_body_that_several_requests_lead_to_is_held_once() -> None:
    body = b"x" * 10_000
    table = Table(max_bytes=2 * len(body))
    for number in range(5):
        table.remember(b"%d" % number, body)

    answers = [table.table.answer(b"%d" % number) for number in range(5)]

    assert all(answer is not None and answer[1] is body for answer in answers)
    assert len(body) < table.bytes < 2 * len(body)
    table.runtime.clock.advance(1000)
    assert not any(table.holds(b"%d" % number) for number in range(5))
    assert (table.bytes, table.table._uses) == (0, {})
