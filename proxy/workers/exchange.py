"""Questions that go to all workers, and what they have counted: the supervisor's memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from proxy.core.families import Family, lasting, merged


@dataclass(slots=True)
class Question:
    """Asked of several workers at once; settled when all have answered, ended, or had their time.

    `asker` is the number of the worker that wants to know, or None for the supervisor itself; `id`
    is the asker's.
    """

    asker: int | None
    id: int
    topic: str
    waiting: set[int]
    until: float
    replies: dict[int, Any] = field(default_factory=dict)

    @property
    def unconfirmed(self) -> set[int]:
        """Workers that were silent, or failed."""
        failed = {number for number, reply in self.replies.items() if reply is None}
        return self.waiting | failed


class Questions:
    """Those that are open. Every method returns those that are settled by it."""

    def __init__(self) -> None:
        self._open: dict[int, Question] = {}
        self._last = 0

    def put(self, question: Question) -> tuple[int, list[Question]]:
        """The id under which to ask, and the question itself where there is nobody to ask."""
        if not question.waiting:
            return 0, [question]
        self._last += 1
        self._open[self._last] = question
        return self._last, []

    def replied(self, asked_as: int, worker: int, body: Any) -> list[Question]:
        """A worker has answered; too late is passed over."""
        question = self._open.get(asked_as)
        if question is None or worker not in question.waiting:
            return []
        question.replies[worker] = body
        return self._without(worker, [asked_as])

    def ended(self, worker: int) -> list[Question]:
        """A worker is gone: it answers nothing, and wants to know nothing."""
        for asked_as, question in list(self._open.items()):
            if question.asker == worker:
                del self._open[asked_as]
        return self._without(worker, list(self._open))

    def expired(self, now: float) -> list[Question]:
        """Time has passed."""
        late = [asked_as for asked_as, question in self._open.items() if now >= question.until]
        return [self._open.pop(asked_as) for asked_as in late]

    def next_until(self) -> float | None:
        """When the next one has had its time."""
        return min((question.until for question in self._open.values()), default=None)

    def _without(self, worker: int, among: Iterable[int]) -> list[Question]:
        settled = []
        for asked_as in among:
            question = self._open[asked_as]
            question.waiting.discard(worker)
            if not question.waiting:
                settled.append(self._open.pop(asked_as))
        return settled


class Ledger:
    """What the workers have counted, as far as they told; of those that ended, what they did."""

    def __init__(self) -> None:
        self._told: dict[int, list[Any]] = {}
        self._past: list[Family] = []

    def told(self, worker: int, families: list[Any]) -> None:
        """A worker's families, as JSON values."""
        self._told[worker] = families

    def ended(self, worker: int) -> None:
        """Keep what must not vanish from the sums."""
        families = map(Family.of_json, self._told.pop(worker, ()))
        self._past = merged([self._past, lasting(families)])

    def reports(self) -> list[list[Any]]:
        """All that there is to sum up, as JSON values."""
        return [*self._told.values(), [family.as_json() for family in self._past]]
