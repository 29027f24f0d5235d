"""Who is asked when a worker wants to know something, and what it is told."""

import selectors
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.core.families import Family
from proxy.workers.line import Line
from proxy.workers.messages import Kind, Message, Topic, Unpacker
from proxy.workers.switchboard import Switchboard
from tests.fakes import FakeClock


class Office:
    """A switchboard with lines to workers, whose ends are in the test's hands."""

    def __init__(self, workers: int) -> None:
        self.clock = FakeClock()
        self.board = Switchboard(self.clock, list)
        self.selector = selectors.DefaultSelector()
        self._ends: dict[int, socket.socket] = {}
        for number in range(1, workers + 1):
            self.begin(number)

    def begin(self, number: int) -> None:
        """A worker is forked."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._ends[number] = theirs
        self.board.plug(number, Line(ours, self.selector, number))

    def end(self, number: int) -> None:
        self._ends.pop(number).close()
        self.board.unplug(number)

    def says(self, number: int, kind: Kind, **members: Any) -> None:
        self.board.take(number, {"kind": kind, **members})

    def heard(self, number: int) -> list[Message]:
        """What was said to a worker since it was last looked at."""
        try:
            return list(Unpacker().feed(self._ends[number].recv(65_536)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        for number in list(self._ends):
            self.end(number)
        self.selector.close()


@pytest.fixture
def office() -> Iterator[Office]:
    """Three workers, of which the third has yet to start."""
    made = Office(3)
    for number in (1, 2):
        made.says(number, Kind.READY)
    yield made
    made.close()


def counted(value: float) -> list[Any]:
    return [Family("n", "counter", "Says what.", {("n_total", ()): value}).as_json()]


def test_a_scrape_does_not_wait_for_a_worker_that_starts(office: Office) -> None:
    office.says(1, Kind.ASK, id=7, topic=Topic.METRICS, body=counted(1))
    (asked,) = office.heard(2)
    assert office.heard(3) == []
    office.says(2, Kind.REPLY, id=asked["id"], topic=Topic.METRICS, body=counted(2))

    (told,) = office.heard(1)
    assert told["id"] == 7
    reports = [[Family.of_json(family) for family in report] for report in told["body"]]
    assert [sum(family.samples.values()) for (family,) in reports[:2]] == [1, 2]


def test_once_it_serves_it_is_asked_until_it_ends(office: Office) -> None:
    office.says(3, Kind.READY)
    office.says(1, Kind.ASK, id=7, topic=Topic.METRICS, body=counted(1))
    (asked,) = office.heard(2)
    assert len(office.heard(3)) == 1
    office.says(2, Kind.REPLY, id=asked["id"], topic=Topic.METRICS, body=counted(2))
    assert office.heard(1) == [], "the third is waited for"
    office.end(3)
    assert len(office.heard(1)) == 1

    office.begin(3)
    office.says(1, Kind.ASK, id=8, topic=Topic.METRICS, body=counted(1))
    assert office.heard(3) == [], "it is another"


def test_B54_a_purge_is_told_to_who_starts_as_well(office: Office) -> None:
    office.says(1, Kind.ASK, id=7, topic=Topic.PURGED, body={})
    for number in (2, 3):
        assert office.heard(1) == []
        (asked,) = office.heard(number)
        office.says(number, Kind.REPLY, id=asked["id"], topic=Topic.PURGED, body=True)
    assert [told["body"] for told in office.heard(1)] == [True]


def test_what_all_who_serve_know_of_keys_comes_by_their_numbers(office: Office) -> None:
    office.says(3, Kind.READY)
    office.says(2, Kind.ASK, id=7, topic=Topic.KEYS, body={"of": 2})
    for number, body in ((3, None), (1, {"of": 1})):  # the third failed
        (asked,) = office.heard(number)
        office.says(number, Kind.REPLY, id=asked["id"], topic=Topic.KEYS, body=body)
    assert [told["body"] for told in office.heard(2)] == [[[1, {"of": 1}], [2, {"of": 2}]]]
