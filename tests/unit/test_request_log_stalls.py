"""The request log when nobody reads it, or nobody can."""

import asyncio
import io
import logging
import os
import select

import orjson
import pytest

from proxy.core.outcome import Outcome, XCache
from proxy.request_log import RequestLog
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio

OUTCOME = Outcome(x_cache=XCache.HIT, endpoint="chat", model="m" * 200)


async def test_B44_a_reader_that_stalls_does_not_hold_up_the_stop() -> None:
    reading, writing = os.pipe()
    with io.FileIO(reading) as reader, io.FileIO(writing, "w") as stream:
        log = RequestLog(stream, FakeClock(), close_seconds=0.05)
        for _ in range(2_000):
            log.told(OUTCOME)

        await asyncio.wait_for(log.close(), 5)

        lines = [orjson.loads(reader.readline()) for _ in range(2_000)]
    assert all(line["cache"] == "HIT" for line in lines)


async def test_a_reader_that_is_gone_costs_lines_and_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with io.FileIO(writing, "w") as stream, caplog.at_level(logging.WARNING):
        log = RequestLog(stream, FakeClock())
        for _ in range(3):
            log.told(OUTCOME)
            log.flush()
        log.told(OUTCOME)
        await log.close()

    assert [record.getMessage() for record in caplog.records] == [
        "the request log can't be written: [Errno 32] Broken pipe"
    ]


def test_lines_of_processes_that_share_a_pipe_are_never_torn() -> None:
    written: list[bytes] = []

    class Pipe(io.RawIOBase):
        def write(self, piece: object) -> int:
            written.append(bytes(piece))  # type: ignore[call-overload]  # a memoryview
            return len(written[-1])

    log = RequestLog(Pipe(), FakeClock(), shared=True)
    for _ in range(500):
        log.told(OUTCOME)
    log.flush()

    assert all(len(piece) <= select.PIPE_BUF and piece.endswith(b"\n") for piece in written)
    assert len(b"".join(written).splitlines()) == 500
    assert len(written) < 100, "as many as fit go at once"
