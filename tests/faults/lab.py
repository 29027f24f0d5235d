"""The upstream of the fault lab: told by the path of a request, and its number, what to do."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from tests.contract.raw_server import Peer
from tests.faults.tcp_proxy import Loss, lose
from tests.faults.wires import Then, Wire
from tests.integration.raw_upstream import RawUpstream, Seen

Script = Callable[[int], Wire]
"""What is answered to the n-th call of one upstream, from 1."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that came, and what was answered."""

    upstream: str
    credential: str
    wire: Wire


class Lab(RawUpstream):
    """Holds many upstreams, each under a path of its own: `lab.url("name", script)`.

    Their names end in a hyphen and a letter; `calls` are by what stands before;
    `on_call` is called in the lab's thread when one has been answered, as far as it ever is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.serve = self._serve_call
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.under_way = 0
        self.on_call: Callable[[], object] = lambda: None
        self._scripts: dict[str, Script] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def url(self, upstream: str, script: Script) -> str:
        """The `base_url` of one more upstream, which follows this script."""
        assert upstream not in self._scripts
        self._scripts[upstream] = script
        return f"{self.root.removesuffix('/v1')}/{upstream}/v1"

    async def _serve_call(self, seen: Seen) -> bool:
        self.seen.clear()  # nobody looks at them here, and there are many
        upstream = seen.target.decode().split("/")[1]
        (credential,) = seen.values("authorization")
        self._counts[upstream] += 1
        wire = self._scripts[upstream](self._counts[upstream])
        self.under_way += 1
        try:
            await seen.take_framed()
            try:
                await _write(seen.peer, wire)
            finally:  # also where nobody takes it any more
                called = Call(upstream, credential.decode().removeprefix("Bearer "), wire)
                self.calls[upstream[:-2]].append(called)
                self.on_call()
            return await _end(seen.peer, wire)
        finally:
            self.under_way -= 1


async def _write(peer: Peer, wire: Wire) -> None:
    for number, piece in enumerate(wire.pieces):
        if number and wire.pace:
            await asyncio.sleep(wire.pace)
        await peer.say(piece)


async def _end(peer: Peer, wire: Wire) -> bool:
    match wire.then:
        case Then.NEXT:
            return True
        case Then.RESET:
            lose(peer.writer, Loss.RESET)
        case Then.SILENCE:
            await peer.until_closed()
        case Then.AGAIN:
            with contextlib.suppress(ConnectionError):
                while True:
                    await peer.say(wire.pieces[-1])
                    await asyncio.sleep(wire.pace)
        case Then.CLOSE:
            pass
    return False
