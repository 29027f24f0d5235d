"""So many requests begin in one turn of the event loop, and the others in the turns after.

A crowd that comes at once would otherwise make one turn of many milliseconds, and whoever asks the
upstream for all of it needs several turns before its request is out.
"""

import asyncio
from collections import deque
from typing import Final

PER_TURN: Final = 32


class Admission:
    """First come, first served; whoever comes alone does not wait."""

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = per_turn
        self._begun = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Return when it is this request's turn."""
        if self.has_room and not self._waiting:
            self.enter_now()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    @property
    def has_room(self) -> bool:
        """Whether one more may begin in this turn; then nobody waits."""
        return self._begun < self._per_turn

    def enter_now(self) -> None:
        """Count a request that has begun, where there was room.

        One that was answered at once need not be counted: nothing of it is left to be done.
        """
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._begun += 1

    def _next_turn(self) -> None:
        self._begun = 0
        while self._waiting and self._begun < self._per_turn:
            turn = self._waiting.popleft()
            if not turn.done():  # its client may have gone
                turn.set_result(None)
                self._begun += 1
        if self._begun:
            asyncio.get_running_loop().call_soon(self._next_turn)
