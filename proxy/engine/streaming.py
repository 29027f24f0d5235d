"""Relaying an answer: raw bytes to the client as they come, a recorder reading along."""

import asyncio
from collections.abc import AsyncIterator

from proxy.core.coding import Decoder, UnreadableCoding
from proxy.core.recording import NotStored, Recording, StreamRecorder, UsageFilter
from proxy.engine.settlement import Settlement
from proxy.errors import UpstreamError

# A longer recording is judged in a thread.
_INLINE_BYTES = 128 * 1024


class RecordedStream:
    """The body of a streamed answer, recorded.

    The verdict falls before the terminal event goes out: a client that asks again at once finds
    the entry. A broken stream raises `UpstreamError` out of the iteration, so that the client sees
    it break too. `decoder` None: the coding can't be read, so nothing is recorded.
    """

    def __init__(
        self,
        settlement: Settlement,
        recorder: StreamRecorder,
        decoder: Decoder | None,
        usage_filter: UsageFilter | None,
    ) -> None:
        self._settlement = settlement
        self._recorder = recorder
        self._decoder = decoder
        self._filter = usage_filter
        self._recorded_bytes = 0
        self._judged = False
        self._sent_terminal = False

    @property
    def rewrites(self) -> bool:
        """True where plain bytes go out, without the usage chunk that the client did not want."""
        return self._filter is not None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        response = self._settlement.exchange.response
        try:
            async for raw in response.aiter_raw():
                plain = self._read_along(raw)
                if self._recorder.saw_terminal:
                    await self._judge(ended_well=True)
                if self._filter is None:
                    yield raw
                elif passed := self._filter.feed(plain):
                    yield passed
                self._sent_terminal = self._recorder.saw_terminal
        except UpstreamError:
            await self._judge(ended_well=False)
            self._settlement.end(complete=False)
            raise
        if self._filter is not None and (rest := self._filter.flush()):
            yield rest
        await self._judge(ended_well=True)
        self._settlement.end(complete=True)

    async def aclose(self) -> None:
        """Let go of the upstream; a stream that was not read to its end is not stored."""
        await self._settlement.exchange.response.aclose()
        self._settlement.judge(NotStored.TRUNCATED, self._recorder.usage)
        # Clients close at the terminal event, and need not wait for the upstream to do the same.
        self._settlement.end(complete=self._sent_terminal)

    def _read_along(self, raw: bytes) -> bytes:
        if self._decoder is None:
            return raw
        try:
            plain = self._decoder.feed(raw)
        except UnreadableCoding:
            self._decoder = None
            return raw
        self._recorded_bytes += len(plain)
        self._recorder.feed(plain)
        return plain

    async def _judge(self, *, ended_well: bool) -> None:
        if self._judged:
            return
        self._judged = True
        verdict: Recording | NotStored
        if self._decoder is None:
            verdict = NotStored.CONTENT_CODING
        elif self._recorded_bytes <= _INLINE_BYTES:
            verdict = self._recorder.finish(ended_well)
        else:
            verdict = await asyncio.to_thread(self._recorder.finish, ended_well)
        self._settlement.judge(verdict, self._recorder.usage)


class RelayedBody:
    """A body too long to be held: what was read of it, then the rest as it comes."""

    def __init__(
        self, settlement: Settlement, read: list[bytes], rest: AsyncIterator[bytes]
    ) -> None:
        self._settlement = settlement
        self._read = read
        self._rest = rest
        settlement.judge(NotStored.TOO_LARGE, None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._read:
            yield self._read.pop(0)
        try:
            async for chunk in self._rest:
                yield chunk
        except UpstreamError:
            self._settlement.end(complete=False)
            raise
        self._settlement.end(complete=True)

    async def aclose(self) -> None:
        """Let go of the upstream."""
        await self._settlement.exchange.response.aclose()
        self._settlement.end(complete=False)
