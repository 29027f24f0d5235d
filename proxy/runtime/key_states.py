"""What happens to upstream keys beside the requests: shared, read again, and reported."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from proxy.clock import Clock
from proxy.core.wire import JsonValue
from proxy.runtime.key_files import KeyFiles
from proxy.settings.models import Settings
from proxy.tasks import TaskGroup
from proxy.upstream.allowance import LimitStatus
from proxy.upstream.board import KeyBoard
from proxy.upstream.key_sharing import KeySharing
from proxy.upstream.keypool import KeyPool
from proxy.upstream.pooled_key import KeyState, KeyStatus


class KeyStates:
    """For the life of the process; `follow` at the start, and at each reload."""

    def __init__(self, board: KeyBoard | None, clock: Clock, tasks: TaskGroup) -> None:
        self._sharing = KeySharing(board, clock, tasks) if board is not None else None
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


def key_report(states: Mapping[str, Sequence[KeyStatus]], wall: float) -> dict[str, JsonValue]:
    """Every key of every upstream as the admin sees it; `wall` is the time of `states`."""
    return {
        "upstreams": {
            name: [_reported(status, wall) for status in statuses]
            for name, statuses in states.items()
        }
    }


def _reported(status: KeyStatus, wall: float) -> dict[str, JsonValue]:
    since, rests = status.since_seconds, status.state is not KeyState.AVAILABLE
    return {
        "key": status.fingerprint,
        "state": status.state.value,
        "reason": status.reason or None,
        "since": None if since is None else _moment(wall - since),
        "until": _moment(wall + status.seconds) if rests else None,
        "in_flight": status.in_flight,
        "uses": status.uses,
        "successes": status.successes,
        "failures": status.failures,
        "headroom": None if status.headroom is None else round(status.headroom, 4),
        "limits": [_limit(limit) for limit in status.limits],
    }


def _limit(limit: LimitStatus) -> dict[str, JsonValue]:
    return {
        "kind": limit.kind,
        "source": "settings" if limit.model is None else "answers",
        "model": limit.model or None,
        "limit": limit.limit,
        "left": limit.left,
    }


def _moment(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
