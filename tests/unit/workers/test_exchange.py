"""Questions that all workers are asked, and the memory of what they counted."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.families import Family, merged
from proxy.workers.exchange import Ledger, Question, Questions
from proxy.workers.messages import Kind, Unpacker, packed


def question(*waiting: int, asker: int = 1, until: float = 10.0) -> Question:
    return Question(asker, 7, "topic", set(waiting), until)


def test_a_question_is_settled_by_the_last_answer() -> None:
    questions, asked = Questions(), question(2, 3)
    asked_as, settled = questions.put(asked)

    assert settled == []
    assert questions.replied(asked_as, 2, "two") == []
    assert questions.replied(asked_as, 3, "three") == [asked]
    assert asked.replies == {2: "two", 3: "three"}
    assert questions.next_until() is None


def test_one_that_nobody_can_answer_is_settled_at_once() -> None:
    alone = question()

    assert Questions().put(alone) == (0, [alone])


def test_who_ends_is_not_waited_for_and_not_answered() -> None:
    questions = Questions()
    of_one, of_two = question(2, asker=1), question(1, 3, asker=2)
    questions.put(of_one)
    as_two, _ = questions.put(of_two)

    assert questions.ended(2) == [of_one]
    assert questions.replied(as_two, 1, "late") == [], "who asked is gone"
    assert questions.next_until() is None


def test_who_is_silent_is_not_waited_for_longer() -> None:
    questions, asked = Questions(), question(2, 3, until=10.0)
    asked_as, _ = questions.put(asked)
    questions.replied(asked_as, 2, "two")

    assert questions.expired(9.9) == []
    assert questions.expired(10.0) == [asked]
    assert asked.waiting == {3}
    assert questions.replied(asked_as, 3, "too late") == []


def test_an_answer_that_comes_twice_counts_once() -> None:
    questions, asked = Questions(), question(2, 3)
    asked_as, _ = questions.put(asked)

    questions.replied(asked_as, 2, "first")
    assert questions.replied(asked_as, 2, "second") == []
    assert asked.replies == {2: "first"}


def counted(requests: float, queued: float = 0.0) -> list[Any]:
    return [
        Family("requests", "counter", "", {("requests_total", ()): requests}).as_json(),
        Family("queued", "gauge", "", {("queued", ()): queued}).as_json(),
    ]


def sums(ledger: Ledger) -> dict[str, float]:
    reports = [[Family.of_json(family) for family in report] for report in ledger.reports()]
    return {family.name: sum(family.samples.values()) for family in merged(reports)}


def test_what_an_ended_worker_counted_stays_and_its_successor_begins_anew() -> None:
    ledger = Ledger()
    ledger.told(1, counted(5, queued=2))
    ledger.told(2, counted(3, queued=1))
    assert sums(ledger) == {"requests": 8, "queued": 3}

    ledger.ended(1)
    assert sums(ledger) == {"requests": 8, "queued": 1}
    ledger.told(1, counted(1))
    assert sums(ledger) == {"requests": 9, "queued": 1}
    ledger.ended(1)
    ledger.ended(1)
    assert sums(ledger) == {"requests": 9, "queued": 1}


@given(st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=30))
def test_counters_never_go_backwards_whoever_ends_when(steps: list[int | None]) -> None:
    ledger, now, before = Ledger(), 0, 0.0
    for step in steps:
        if step is None:
            ledger.ended(1)
            now = 0
        else:
            now += step
            ledger.told(1, counted(now))
        total = sums(ledger).get("requests", 0.0)
        assert total >= before
        before = total


@given(st.lists(st.text(max_size=20), max_size=5), st.lists(st.integers(1, 9), max_size=40))
def test_messages_come_out_whole_however_they_are_cut(texts: list[str], cuts: list[int]) -> None:
    wire = b"".join(packed(Kind.BEAT, {"text": text}) for text in texts)
    unpacker = Unpacker()
    got: list[Any] = []
    for cut in [*cuts, len(wire)]:
        got += unpacker.feed(wire[:cut])
        wire = wire[cut:]

    assert got == [{"kind": "beat", "text": text} for text in texts]
