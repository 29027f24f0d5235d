"""The table of the hot path: bounded, and with nothing in it that is out of date."""

from typing import Any, cast

import pytest

from proxy.core.invalidation import Events
from proxy.core.outcome import Outcome, XCache
from proxy.edge.hotpath import HotTable
from proxy.engine.base import Answer, Repeatable
from proxy.runtime import Runtime, Snapshot
from proxy.runtime.request_ids import RequestIds
from tests.fakes import FakeClock

NOTED = "magic_proxy.request_bytes"


class FakeService:
    def __init__(self) -> None:
        self.versions: dict[str, int] = {}

    def version(self, key: str) -> int:
        return self.versions.get(key, 0)


class Recorder:
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def told(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


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
            forwarder=cast("Any", None),
            access=cast("Any", None),
            observer=self.told,
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
        body: bytes = b"{}",
        *,
        lifetime: float = 100.0,
        repeats: float | None = None,
        version: str = "1.1",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        snapshot: Snapshot | None = None,
    ) -> None:
        now = self.runtime.clock.wall()
        outcome = Outcome(x_cache=XCache.HIT, endpoint="chat", status=200, age_seconds=0.0)
        same = ((b"content-type", b"application/json"),)
        until = now + (lifetime if repeats is None else repeats)
        key = request.decode("latin-1")
        number = (snapshot or self.runtime.snapshot).service.version(key)
        repeatable = Repeatable(
            key, number, now, now + lifetime, until, outcome, same, with_key=False
        )
        scope = {NOTED: request, "headers": list(headers), "http_version": version}
        answer = Answer(200, [], body, repeatable)
        self.table.remember(scope, snapshot or self.runtime.snapshot, answer)

    def holds(self, request: bytes) -> bool:
        return self.table.answer(request) is not None

    @property
    def bytes(self) -> int:
        return self.table._bytes


def test_a_request_that_was_remembered_is_answered_and_told() -> None:
    table = Table()
    table.remember(b"one", b"1" * 20)
    table.runtime.clock.advance(5)

    answer = table.table.answer(b"one")

    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert b"\r\ncache-status: magic-proxy; hit; ttl=95" in head
    assert b"\r\nage: 5" in head
    assert b"\r\ncontent-length: 20" in head
    assert body == b"1" * 20
    (told,) = table.runtime.told.outcomes
    assert (told.age_seconds, told.ttl_seconds) == (5.0, 95.0)
    assert told.request_id.encode() in head


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
    assert not table.table._answers


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
    answer = table.table.answer(b"one")
    assert answer is not None
    assert b"hit; ttl=22" in answer, "what is told is the time that is left, not that of the table"
    table.runtime.clock.advance(0.5)
    assert not table.holds(b"one")
    assert table.bytes == 0, "whoever answers it next may offer it again"


def test_B15_a_clock_that_stepped_back_makes_no_negative_age() -> None:
    table = Table()
    table.remember(b"one")
    table.runtime.clock.set_wall(table.runtime.clock.wall() - 50)

    answer = table.table.answer(b"one")

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


def test_B10_an_older_http_is_not_taken() -> None:
    table = Table()
    table.remember(b"one", version="1.0")

    assert not table.holds(b"one")


def test_B10_neither_a_stream_nor_an_answer_for_once_is_taken() -> None:
    table = Table()
    snapshot = table.runtime.snapshot
    scope = {NOTED: b"one", "headers": [], "http_version": "1.1"}

    table.table.remember(scope, snapshot, Answer(200, [], b"{}", None))

    assert not table.holds(b"one")


def test_B10_a_request_that_was_not_noted_is_not_taken() -> None:
    table = Table()
    table.remember(b"one")
    before = table.bytes
    repeatable = next(iter(table.table._answers.values())).repeatable
    scope = {"headers": [], "http_version": "1.1"}

    table.table.remember(scope, table.runtime.snapshot, Answer(200, [], b"{}", repeatable))

    assert table.bytes == before
