"""Which workers are started, replaced, ended and given up."""

import signal

from proxy.workers.roster import (
    MOST_FAILED_STARTS,
    SAY_WHERE,
    START_SECONDS,
    TICK_SECONDS,
    Act,
    Finish,
    Level,
    Roster,
    Say,
    Send,
    Start,
)

TIMEOUT = 5.0
GRACE = 10.0


class Watched:
    """A roster that is driven as the supervisor does, with a clock that the test moves."""

    def __init__(self, count: int = 2) -> None:
        self.roster = Roster(count, timeout_seconds=TIMEOUT, stop_seconds=GRACE)
        self.now = 1000.0
        self.pids = 100
        self.said: list[Say] = []

    def do(self, acts: list[Act]) -> list[Act]:
        """What is left to be done when lines are written and workers forked."""
        left: list[Act] = []
        for act in acts:
            if isinstance(act, Say):
                self.said.append(act)
                continue
            if isinstance(act, Start):
                self.pids += 1
                self.roster.started(act.number, self.pids, self.now)
            left.append(act)
        return left

    def tick(self, seconds: float = TICK_SECONDS) -> list[Act]:
        self.now += seconds
        return self.do(self.roster.tick(self.now))

    def ready(self, *numbers: int) -> None:
        for number in numbers:
            self.do(self.roster.ready(number))

    def ended(self, number: int, code: int) -> list[Act]:
        return self.do(self.roster.ended(number, code, self.now))

    def stop(self, by: signal.Signals = signal.SIGTERM) -> list[Act]:
        return self.do(self.roster.stop(self.now, by=by))

    @property
    def errors(self) -> list[str]:
        return [say.text for say in self.said if say.level is Level.ERROR]


def serving(count: int = 2) -> Watched:
    watched = Watched(count)
    assert watched.tick() == [Start(number) for number in range(1, count + 1)]
    watched.ready(*range(1, count + 1))
    return watched


def test_all_places_are_filled_at_the_start_and_complete_when_all_serve() -> None:
    watched = Watched(3)

    assert watched.tick() == [Start(1), Start(2), Start(3)]
    watched.ready(1, 3)
    assert watched.roster.serving == 2
    watched.ready(2)
    assert watched.roster.is_complete
    assert watched.tick() == []


def test_a_worker_that_dies_is_replaced_at_once_and_said_once() -> None:
    watched = serving()

    assert watched.ended(2, -9) == [Start(2)]
    assert watched.errors == [
        "worker 2 (pid 102) died: killed by SIGKILL; another takes its place now"
    ]
    assert watched.roster.restarts == 1
    watched.ready(2)
    assert watched.roster.is_complete


def test_one_that_was_told_to_end_is_replaced_without_complaint() -> None:
    watched = serving()

    assert watched.ended(1, 0) == [Start(1)]
    assert watched.errors == []


def test_who_dies_again_and_again_is_waited_for_longer_each_time() -> None:
    watched = serving()
    pauses = []
    for _ in range(8):
        died_at = watched.now
        acts = watched.ended(1, 1)
        while not acts:
            watched.roster.heard(2)
            acts = watched.tick(0.25)
        assert acts == [Start(1)]
        pauses.append(watched.now - died_at)
        watched.ready(1)

    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_long_life_is_a_new_beginning() -> None:
    watched = serving()
    assert watched.ended(1, 1) == [Start(1)]
    watched.ready(1)
    watched.now += 3600

    assert watched.ended(1, 1) == [Start(1)]


def test_a_worker_that_is_silent_is_asked_where_it_hangs_and_then_killed() -> None:
    watched = serving()
    acts: list[Act] = []
    for _ in range(int(TIMEOUT / TICK_SECONDS) + 3):
        watched.roster.heard(1)
        acts += watched.tick()

    assert acts == [Send(2, SAY_WHERE), Send(2, signal.SIGKILL)]
    assert watched.errors == ["worker 2 (pid 102) has not been heard of for 5 s: it is ended"]
    assert watched.ended(2, -9) == [Start(2)]


def test_a_machine_that_was_suspended_finds_nobody_silent() -> None:
    watched = serving()
    assert watched.tick() == []
    watched.now += 86_400

    assert watched.tick() == []
    assert watched.errors == []


def test_what_ends_beside_a_worker_is_no_silence_of_its_own() -> None:
    watched = serving()
    for _ in range(200):
        assert watched.ended(1, 0) == [Start(1)]
        watched.ready(1)
    assert watched.errors == []


def test_a_start_may_take_longer_than_a_worker_may_be_silent() -> None:
    watched = Watched(1)
    watched.tick()
    for _ in range(int(START_SECONDS / TICK_SECONDS)):
        assert watched.tick() == []

    assert watched.tick() == [Send(1, SAY_WHERE)]


def test_a_worker_that_fails_at_the_first_start_ends_all_with_its_code() -> None:
    watched = Watched(2)
    watched.tick()

    assert watched.ended(1, 2) == [Send(2, signal.SIGKILL)]
    assert watched.errors == ["worker 1 (pid 101) did not start: exit code 2"]
    assert watched.ended(2, -9) == [Finish(2)]


def test_one_that_is_killed_at_the_first_start_is_a_failure_of_all() -> None:
    watched = Watched(1)
    watched.tick()

    assert watched.ended(1, -11) == [Finish(1)]
    assert watched.errors == ["worker 1 (pid 101) did not start: killed by SIGSEGV"]


def test_it_is_given_up_where_no_worker_starts_any_more() -> None:
    watched = serving(1)
    watched.ended(1, -9)
    acts: list[Act] = []
    fails = 1
    while not acts:
        acts = [act for act in watched.ended(1, 1) if isinstance(act, Finish)]
        fails += not acts
        while not acts and watched.roster.restarts < fails:
            watched.tick()

    assert acts == [Finish(1)]
    assert fails == MOST_FAILED_STARTS
    assert "giving up after 5 failed starts in a row" in watched.errors[-1]


def test_while_another_serves_a_failing_one_is_tried_on_and_on() -> None:
    watched = serving(2)
    watched.ended(1, -9)
    for _ in range(20):
        watched.ended(1, 1)
        while Start(1) not in watched.tick():
            watched.roster.heard(2)

    assert not watched.roster.is_stopping


def test_B44_a_stop_ends_all_in_order_and_starts_nobody() -> None:
    watched = serving()

    assert watched.stop() == [Send(1, signal.SIGTERM), Send(2, signal.SIGTERM)]
    assert watched.stop() == [], "asking again changes nothing"
    assert watched.ended(1, 0) == []
    assert watched.tick() == []
    assert watched.ended(2, 0) == [Finish(0)]


def test_B44_whoever_does_not_stop_in_time_is_killed() -> None:
    watched = serving()
    watched.stop()
    watched.ended(1, 0)
    watched.now += GRACE - 1.0

    assert watched.tick() == []
    assert watched.tick(30) == [Send(2, signal.SIGKILL)]
    assert watched.errors == ["worker 2 (pid 102) did not stop in time: it is killed"]
    assert watched.ended(2, -9) == [Finish(0)]


def test_an_impatient_stop_is_passed_on() -> None:
    watched = serving()

    assert watched.stop(signal.SIGINT) == [Send(1, signal.SIGTERM), Send(2, signal.SIGTERM)]
    assert watched.stop(signal.SIGINT) == [Send(1, signal.SIGINT), Send(2, signal.SIGINT)]


def test_a_stop_while_a_place_is_empty_does_not_wait_for_it() -> None:
    watched = serving(1)
    watched.ended(1, 1)
    watched.ready(1)
    assert watched.ended(1, 1) == [], "its successor is not due yet"

    assert watched.stop() == [Finish(0)]
