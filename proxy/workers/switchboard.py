"""Carries questions of one worker to all others, and their answers back."""

from collections.abc import Callable
from typing import Any, Final

from proxy.clock import Clock
from proxy.core.families import Family
from proxy.workers.exchange import Ledger, Question, Questions
from proxy.workers.line import Line
from proxy.workers.messages import Kind, Message, Topic, packed

# How long the others are waited for, whoever asks.
_ANSWER_SECONDS: Final = 1.0
# What only those have to tell of that serve.
_REPORTS: Final = frozenset({Topic.METRICS, Topic.KEYS})


class Switchboard:
    """The lines to the workers, by number; `own` is what the supervisor itself counts."""

    def __init__(self, clock: Clock, own: Callable[[], list[Family]]) -> None:
        self._clock = clock
        self._own = own
        self._lines: dict[int, Line] = {}
        self._serving: set[int] = set()
        self._questions = Questions()
        self._ledger = Ledger()
        self._reloaded: Callable[[set[int]], None] = lambda _: None

    def plug(self, number: int, line: Line) -> None:
        """A worker begins."""
        self._lines[number] = line

    def unplug(self, number: int) -> None:
        """A worker has ended, and its last words were taken."""
        self._lines.pop(number).hang_up()
        self._serving.discard(number)
        self._ledger.ended(number)
        self._settle(self._questions.ended(number))

    def take(self, number: int, message: Message) -> None:
        """A worker said this."""
        match message["kind"]:
            case Kind.READY:
                self._serving.add(number)
            case Kind.BEAT:
                if "families" in message:
                    self._ledger.told(number, message["families"])
            case Kind.ASK:
                topic, body = message["topic"], message["body"]
                if topic == Topic.METRICS:
                    self._ledger.told(number, body)
                self._ask(number, message["id"], topic, body)
            case Kind.REPLY:
                body = message["body"]
                if message["topic"] == Topic.METRICS and body is not None:
                    self._ledger.told(number, body)
                self._settle(self._questions.replied(message["id"], number, body))
            case _:
                pass  # for whoever watches

    def reload(self, settings: str, done: Callable[[set[int]], None]) -> None:
        """Have all take settings over; `done` is told who did not say so in time, or failed."""
        self._reloaded = done
        self._ask(None, 0, Topic.RELOAD, settings)

    def expire(self, now: float) -> None:
        """Time has passed."""
        self._settle(self._questions.expired(now))

    def next_until(self) -> float | None:
        """When there is something to `expire`."""
        return self._questions.next_until()

    def _ask(self, asker: int | None, asked_by: int, topic: str, body: Any) -> None:
        """Put a question to all workers but the one that asks.

        One that has yet to start hears of purges and settings all the same.
        """
        able = self._serving if topic in _REPORTS else self._lines.keys()
        asked = {number for number in able if number != asker}
        until = self._clock.monotonic() + _ANSWER_SECONDS
        question = Question(asker, asked_by, topic, set(asked), until)
        if asker is not None and topic == Topic.KEYS:
            question.replies[asker] = body
        asked_as, settled = self._questions.put(question)
        for number in asked:
            message = {"id": asked_as, "topic": topic, "body": body}
            self._lines[number].say(packed(Kind.ASK, message))
        self._settle(settled)

    def _settle(self, settled: list[Question]) -> None:
        for question in settled:
            if question.topic == Topic.METRICS:
                own = [family.as_json() for family in self._own()]
                self._reply(question, [*self._ledger.reports(), own])
            elif question.topic == Topic.KEYS:
                told = sorted(question.replies.items())
                self._reply(question, [each for each in told if each[1] is not None])
            elif question.topic == Topic.RELOAD:
                self._reloaded(question.unconfirmed)
            else:
                self._reply(question, not question.unconfirmed)

    def _reply(self, question: Question, body: Any) -> None:
        line = self._lines.get(question.asker or 0)
        if line is not None:
            line.say(packed(Kind.REPLY, {"id": question.id, "body": body}))
