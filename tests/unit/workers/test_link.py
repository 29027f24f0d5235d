"""A worker's end of the line: what it says by itself, what it answers, and when nobody does."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.core.families import Family
from proxy.core.selectors import Mark, Selector
from proxy.errors import WorkersSilent
from proxy.runtime import Settings
from proxy.workers import link as module
from proxy.workers.link import BEATS_PER_REPORT, Link, mark_of, settings_of, settings_text
from proxy.workers.messages import Kind, Message, Topic, Unpacker, packed
from tests.waiting import until

pytestmark = pytest.mark.anyio

COUNTED = [Family("n", "counter", "Says what.", {("n_total", (("a", "b"),)): 2.0})]
MARK = Mark(7, Selector(tag="t", model="m"), soft=True, stored_before=1.5)


class Line:
    """A link, and the supervisor's end of its socket in the test's hands."""

    def __init__(self) -> None:
        self.end, self.theirs = socket.socketpair()
        self.end.setblocking(False)
        self.hung_up = asyncio.Event()
        self.link = Link(SystemClock(), self.hung_up.set)
        self.asked: list[Any] = []
        self._unpacker = Unpacker()
        self.heard: list[Message] = []

    async def open(self) -> None:
        async def metrics(body: Any) -> Any:
            self.asked.append(body)
            return ["counted"]

        async def purged(_: Any) -> Any:
            raise ZeroDivisionError

        await self.link.open(self.theirs, {Topic.METRICS: metrics, Topic.PURGED: purged})

    async def hears(self, kind: Kind) -> Message:
        """The next message of this kind."""
        loop = asyncio.get_running_loop()
        while True:
            for at, message in enumerate(self.heard):
                if message["kind"] == kind:
                    return self.heard.pop(at)
            self.heard += self._unpacker.feed(await loop.sock_recv(self.end, 65536))

    def says(self, kind: Kind, **members: Any) -> None:
        self.end.sendall(packed(kind, members))


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    made = Line()
    await made.open()
    yield made
    await made.link.close([])
    made.end.close()


async def test_it_says_that_its_loop_turns_and_now_and_then_what_was_counted(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.001)
    line.link.begin(lambda: COUNTED)

    beats = [await line.hears(Kind.BEAT) for _ in range(BEATS_PER_REPORT)]

    assert ["families" in beat for beat in beats] == [False] * (BEATS_PER_REPORT - 1) + [True]
    assert [Family.of_json(each) for each in beats[-1]["families"]] == COUNTED


async def test_its_last_words_are_what_was_counted(line: Line) -> None:
    await line.link.close(COUNTED)

    assert Family.of_json((await line.hears(Kind.BEAT))["families"][0]) == COUNTED[0]
    assert line.hung_up.is_set()


async def test_it_answers_what_it_is_asked_and_says_so_where_it_can_not(line: Line) -> None:
    line.says(Kind.ASK, id=4, topic=Topic.METRICS, body=[1])
    line.says(Kind.ASK, id=5, topic=Topic.PURGED, body={})

    answers = [await line.hears(Kind.REPLY) for _ in range(2)]

    bodies = {answer["id"]: (answer["topic"], answer["body"]) for answer in answers}
    assert bodies == {4: ("metrics", ["counted"]), 5: ("purged", None)}
    assert line.asked == [[1]]


async def test_a_scrape_gets_what_all_counted(line: Line) -> None:
    asking = asyncio.get_running_loop().create_task(line.link.metrics(COUNTED))
    question = await line.hears(Kind.ASK)
    told = [family.as_json() for family in COUNTED]
    assert question["topic"] == "metrics"
    assert [Family.of_json(each) for each in question["body"]] == COUNTED
    line.says(Kind.REPLY, id=question["id"] + 1, body=["another's"])
    line.says(Kind.REPLY, id=question["id"], body=[told, told])

    assert await asking == [COUNTED, COUNTED]


async def test_what_is_known_of_keys_comes_by_the_numbers_of_workers(line: Line) -> None:
    own, other = {"workers": 1, "upstreams": {}}, {"workers": 1, "upstreams": {"a": []}}
    asking = asyncio.get_running_loop().create_task(line.link.keys(own))
    question = await line.hears(Kind.ASK)
    assert (question["topic"], question["body"]) == ("keys", own)
    line.says(Kind.REPLY, id=question["id"], body=[[1, own], [2, other]])

    assert await asking == {1: own, 2: other}


async def test_a_purge_is_told_whole(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    telling = asyncio.get_running_loop().create_task(line.link.purged(MARK))
    question = await line.hears(Kind.ASK)
    assert not telling.done(), "it waits for the others"
    line.says(Kind.REPLY, id=question["id"], body=True)
    await telling

    assert mark_of(question["body"]) == MARK
    assert caplog.records == []


async def test_a_supervisor_that_is_silent_is_not_waited_for_for_long(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.01)

    with caplog.at_level(logging.WARNING):
        await line.link.purged(MARK)
    with pytest.raises(WorkersSilent):
        await line.link.metrics(COUNTED)

    assert "not confirmed" in caplog.text


async def test_it_notices_that_the_supervisor_is_gone(line: Line) -> None:
    line.end.close()

    await until(line.hung_up.is_set)
    line.link.say(Kind.READY)  # nobody hears it


def test_settings_arrive_as_they_were() -> None:
    upstream = {"base_url": "http://a", "api_keys": ["sk-secret"]}
    settings = Settings.model_validate({"clients": "open", "upstreams": {"a": upstream}})

    assert settings_of(settings_text(settings)) == settings
