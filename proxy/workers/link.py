"""A worker's end of the socket to its supervisor, and over it to the other workers."""

import asyncio
import base64
import logging
import pickle
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from proxy.clock import Clock
from proxy.core.families import Family
from proxy.core.selectors import Mark, Selector
from proxy.errors import WorkersSilent
from proxy.runtime import Settings
from proxy.runtime.key_reports import Report
from proxy.tasks import TaskGroup
from proxy.workers.messages import Kind, Message, Topic, Unpacker, packed

log = logging.getLogger("magic_proxy")

BEAT_SECONDS: Final = 0.5
# Counting costs more than a beat: what was counted since is lost if the worker is killed.
BEATS_PER_REPORT: Final = 10
# The supervisor settles questions before that, whoever is silent.
_PATIENCE_SECONDS: Final = 3.0

Answerer = Callable[[Any], Awaitable[Any]]


class Link(asyncio.Protocol):
    """Asks the others, and answers what they ask; `gone` is called when the supervisor is gone."""

    def __init__(self, clock: Clock, gone: Callable[[], None]) -> None:
        self._clock = clock
        self._gone = gone
        self._tasks = TaskGroup()
        self._answerers: Mapping[str, Answerer] = {}
        self._transport: asyncio.Transport | None = None
        self._unpacker = Unpacker()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self._lost = asyncio.Event()

    async def open(self, end: socket.socket, answerers: Mapping[str, Answerer]) -> None:
        """Begin to listen; `answerers` say what to answer to questions, by topic."""
        self._answerers = answerers
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=end)

    def begin(self, families: Callable[[], list[Family]]) -> None:
        """Say now and then that the loop turns, and what was counted."""
        self._tasks.start(self._beat(families), name="beat")

    def say(self, kind: Kind, members: Mapping[str, Any] | None = None) -> None:
        """Send one message; nobody hears it if the supervisor is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packed(kind, members))

    async def close(self, last: list[Family]) -> None:
        """Tell what was counted in the end, and hang up."""
        await self._tasks.cancel()
        self.say(Kind.BEAT, {"families": [family.as_json() for family in last]})
        if self._transport is not None:
            self._transport.close()  # when all is sent
            await self._lost.wait()

    # What the runtime asks of its peers.

    async def purged(self, mark: Mark) -> None:
        """Return when the other workers have the purge in force."""
        body = {
            "number": mark.number,
            "members": dict(mark.selector.set_members),
            "soft": mark.soft,
            "stored_before": mark.stored_before,
        }
        try:
            confirmed = await self._ask(Topic.PURGED, body)
        except WorkersSilent:
            confirmed = False
        if not confirmed:
            log.warning("a purge was not confirmed by all workers yet")

    async def metrics(self, own: list[Family]) -> list[list[Family]]:
        """What all workers have counted, `own` included. Raises WorkersSilent."""
        reports = await self._ask(Topic.METRICS, [family.as_json() for family in own])
        return [[Family.of_json(family) for family in report] for report in reports]

    async def keys(self, own: Report) -> dict[int, Report]:
        """What those that serve know of upstream keys, `own` included. Raises WorkersSilent."""
        return dict(await self._ask(Topic.KEYS, own))

    async def _ask(self, topic: Topic, body: Any) -> Any:
        self._last += 1
        number = self._last
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.say(Kind.ASK, {"id": number, "topic": topic, "body": body})
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await answer
        except TimeoutError:
            raise WorkersSilent("The other workers could not be asked.") from None
        finally:
            del self._asked[number]

    async def _beat(self, families: Callable[[], list[Family]]) -> None:
        beats = 0
        while True:
            beats += 1
            report = None
            if beats % BEATS_PER_REPORT == 0:
                report = {"families": [family.as_json() for family in families()]}
            self.say(Kind.BEAT, report)
            await self._clock.sleep(BEAT_SECONDS)

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is watched now."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The supervisor says something."""
        for message in self._unpacker.feed(data):
            self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - whatever it was
        """The supervisor is gone, or this end was closed."""
        self._lost.set()
        self._gone()

    def _take(self, message: Message) -> None:
        if message["kind"] == Kind.REPLY:
            answer = self._asked.get(message["id"])
            if answer is not None and not answer.done():
                answer.set_result(message["body"])
        elif message["kind"] == Kind.ASK:
            self._tasks.start(self._answer(message), name="answer-worker")

    async def _answer(self, message: Message) -> None:
        topic = message["topic"]
        try:
            body = await self._answerers[topic](message["body"])
        except Exception:  # boundary: who asks must not wait for what failed here
            log.exception("a question of another worker failed: %s", topic)
            body = None
        self.say(Kind.REPLY, {"id": message["id"], "topic": topic, "body": body})


def mark_of(body: Mapping[str, Any]) -> Mark:
    """The purge that another worker tells of."""
    selector = Selector(**body["members"])
    return Mark(body["number"], selector, body["soft"], body["stored_before"])


def settings_text(settings: Settings) -> str:
    """Settings on their way from the supervisor to a worker."""
    return base64.b64encode(pickle.dumps(settings)).decode("ascii")


def settings_of(text: str) -> Settings:
    """Undo `settings_text`: both ends are forks of one process, over a socket of their own."""
    settings: Settings = pickle.loads(base64.b64decode(text))  # noqa: S301 - see above
    return settings
