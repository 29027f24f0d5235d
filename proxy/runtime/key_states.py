"""What happens to upstream keys beside the requests: shared, and read again."""

from collections.abc import Mapping

from proxy.clock import Clock
from proxy.runtime.key_files import KeyFiles
from proxy.settings.models import Settings
from proxy.tasks import TaskGroup
from proxy.upstream.board import KeyBoard
from proxy.upstream.key_sharing import KeySharing
from proxy.upstream.keypool import KeyPool


class KeyStates:
    """For the life of the process; `follow` at the start, and at each reload."""

    def __init__(self, board: KeyBoard | None, clock: Clock, tasks: TaskGroup) -> None:
        self._sharing = KeySharing(board, clock) if board is not None else None
        self._files = KeyFiles(clock, tasks, self._tell_all)
        self._open = False

    def open(self, settings: Settings) -> None:
        """Begin to share, if there are keys."""
        has_keys = any(upstream.keys for upstream in settings.upstreams.values())
        if self._sharing is not None and has_keys and not self._open:
            self._open = True
            self._sharing.open()

    def follow(self, settings: Settings, pools: Mapping[str, KeyPool]) -> None:
        """These settings, and these pools that were built from them, are in force now."""
        self.open(settings)
        self._files.follow(settings.upstreams, pools)
        if self._sharing is not None:
            self._sharing.follow(pools)

    async def close(self) -> None:
        """Stop sharing; safe to call twice."""
        if self._sharing is not None:
            await self._sharing.close()

    def _tell_all(self) -> None:
        if self._sharing is not None:
            self._sharing.tell_all()
