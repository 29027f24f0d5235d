"""The keys of one upstream as a state machine. Pure: `now` is monotonic seconds, handed in.

available ── limited ──▶ cooling ── time ──▶ available
    │                                            ▲
    └─ rejected ─▶ retired ── time ──▶ probed ───┘ works
                      ▲                  │
                      └──── rejected ────┘ for twice as long
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import StrEnum

from proxy.upstream.config import KeySecret
from proxy.upstream.verdict import (
    KeyLimited,
    KeyRejected,
    KeyWorks,
    Verdict,
)

# However often a key is rejected, it is probed once a day: accounts are reopened.
LONGEST_RETIREMENT_SECONDS = 86_400.0


class KeyState(StrEnum):
    """Where a key stands."""

    # It is given out.
    AVAILABLE = "available"
    # The upstream said to wait, or its time-out after a 429 runs.
    COOLING = "cooling"
    # The upstream rejected it; it is probed with one real request at a time later on.
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Lease:
    """One use of one key; given back with `KeyPool.release`. `probe`: a retired key is tried."""

    serial: int
    index: int
    secret: KeySecret
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """A key changed its state; `seconds` is for how long, where that is known."""

    fingerprint: str
    before: KeyState
    after: KeyState
    reason: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """One key as metrics and health show it; `seconds` until it may be used or probed."""

    fingerprint: str
    state: KeyState
    in_flight: int
    seconds: float = 0.0


@dataclass(slots=True)
class _Key:
    secret: KeySecret
    fingerprint: str
    state: KeyState = KeyState.AVAILABLE
    in_flight: int = 0
    # Start-time fair queueing: the virtual time at which this key's next turn may start.
    turn: float = 0.0
    cool_until: float = 0.0
    probe_at: float = 0.0
    rejections: int = 0
    probing: bool = False


class KeyPool:
    """Gives out the key with the least in flight, then in turns; both in proportion to weight.

    `cooldown_seconds` counts for a limit without a time, `quota_cooldown_seconds` for a used-up
    account, `retire_seconds` until a rejected key is first probed.
    """

    def __init__(
        self,
        keys: Sequence[KeySecret],
        *,
        cooldown_seconds: float = 20.0,
        quota_cooldown_seconds: float = 3600.0,
        retire_seconds: float = 600.0,
    ) -> None:
        if any(key.weight <= 0 for key in keys):
            raise ValueError("the weight of a key is above 0")
        self._keys = [_Key(secret, secret.fingerprint) for secret in keys]
        self._cooldown = cooldown_seconds
        self._quota_cooldown = quota_cooldown_seconds
        self._retire = retire_seconds
        self._turn = 0.0
        self._serial = 0
        self._open: set[int] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def take_over(self, other: "KeyPool") -> None:
        """Go on with what `other` has learned of the keys that both have; leases stay there."""
        known = {key.secret.value: key for key in other._keys}  # noqa: SLF001  # its own kind
        for key in self._keys:
            if (before := known.get(key.secret.value)) is not None:
                key.state, key.cool_until = before.state, before.cool_until
                key.probe_at, key.rejections = before.probe_at, before.rejections

    def acquire(
        self, now: float, excluded: Container[int] = (), *, may_probe: bool = True
    ) -> Lease | None:
        """A key whose index is not `excluded`, or None where each is cooling, retired or excluded.

        A retired key whose time has come goes first, so that it comes back while others work;
        without `may_probe` (the request can't be sent twice) it goes last.
        """
        due = [i for i in self._left(excluded) if self._is_due(i, now)]
        ready = [i for i in self._left(excluded) if self._is_ready(i, now)]
        if due and (may_probe or not ready):
            return self._lease(min(due, key=lambda i: self._keys[i].probe_at), probe=True)
        if ready:
            return self._lease(min(ready, key=self._order), probe=False)
        return None

    def release(self, lease: Lease) -> None:
        """The use is over; a second release of one lease does nothing."""
        if lease.serial not in self._open:
            return
        self._open.remove(lease.serial)
        key = self._keys[lease.index]
        key.in_flight -= 1
        if lease.probe:
            key.probing = False

    def report(self, lease: Lease, verdict: Verdict, now: float) -> Transition | None:
        """What the use showed; the change of state, where there is one."""
        key = self._keys[lease.index]
        match verdict:
            case KeyLimited(seconds, quota):
                default = self._quota_cooldown if quota else self._cooldown
                wait = max(default, seconds or 0.0) if quota else seconds
                return self._cool(key, lease, default if wait is None else wait, now, quota=quota)
            case KeyRejected(reason):
                return self._reject(key, lease, reason, now)
            case KeyWorks() if lease.probe and key.state is KeyState.RETIRED:
                key.rejections = 0
                return _change(key, KeyState.AVAILABLE, "the upstream takes it again")
            case _:
                return None

    def settle(self, now: float) -> list[Transition]:
        """The keys whose cooling ended since it was last asked."""
        return [
            _change(key, KeyState.AVAILABLE, "its time is over")
            for key in self._keys
            if key.state is KeyState.COOLING and key.cool_until <= now
        ]

    def soonest(self, now: float) -> float | None:
        """Seconds until the first cooling key may be used; None where no key is cooling."""
        waits = [
            key.cool_until - now
            for key in self._keys
            if key.state is KeyState.COOLING and key.cool_until > now
        ]
        return min(waits, default=None)

    def exhausted(self, now: float) -> bool:
        """True where no key can be given out, whichever a request has tried."""
        indexes = range(len(self._keys))
        return not any(self._is_ready(i, now) or self._is_due(i, now) for i in indexes)

    def states(self, now: float) -> tuple[KeyStatus, ...]:
        """Every key, in the order of the settings."""
        return tuple(self._status(key, now) for key in self._keys)

    def _status(self, key: _Key, now: float) -> KeyStatus:
        state = key.state
        if state is KeyState.COOLING and key.cool_until <= now:
            state = KeyState.AVAILABLE
        until = {KeyState.COOLING: key.cool_until, KeyState.RETIRED: key.probe_at}.get(state, now)
        return KeyStatus(key.fingerprint, state, key.in_flight, max(until - now, 0.0))

    def _left(self, excluded: Container[int]) -> list[int]:
        return [i for i in range(len(self._keys)) if i not in excluded]

    def _is_ready(self, index: int, now: float) -> bool:
        key = self._keys[index]
        return key.state is not KeyState.RETIRED and key.cool_until <= now

    def _is_due(self, index: int, now: float) -> bool:
        key = self._keys[index]
        due = key.probe_at <= now and key.cool_until <= now
        return key.state is KeyState.RETIRED and due and not key.probing

    def _order(self, index: int) -> tuple[float, float, int]:
        key = self._keys[index]
        return (key.in_flight / key.secret.weight, max(key.turn, self._turn), index)

    def _lease(self, index: int, *, probe: bool) -> Lease:
        key = self._keys[index]
        self._turn = max(key.turn, self._turn)
        key.turn = self._turn + 1.0 / key.secret.weight
        key.in_flight += 1
        key.probing = key.probing or probe
        self._serial += 1
        self._open.add(self._serial)
        return Lease(self._serial, index, key.secret, probe)

    def _cool(
        self, key: _Key, lease: Lease, seconds: float, now: float, *, quota: bool
    ) -> Transition | None:
        """Never shortens a time that is already running."""
        running = key.cool_until > now
        key.cool_until = max(key.cool_until, now + seconds)
        if key.state is KeyState.RETIRED and not lease.probe:
            return None  # an answer from before the rejection does not bring it back
        if key.state is KeyState.COOLING and running:
            return None
        key.rejections = 0
        reason = "its quota is used up" if quota else "rate limited"
        return _change(key, KeyState.COOLING, reason, key.cool_until - now)

    def _reject(self, key: _Key, lease: Lease, reason: str, now: float) -> Transition | None:
        if key.state is KeyState.RETIRED and not lease.probe:
            return None  # one rejection, seen by several requests at once
        seconds = min(self._retire * 2**key.rejections, LONGEST_RETIREMENT_SECONDS)
        key.rejections = min(key.rejections + 1, 30)
        key.probe_at = now + seconds
        return _change(key, KeyState.RETIRED, reason, seconds)


def _change(key: _Key, after: KeyState, reason: str, seconds: float | None = None) -> Transition:
    transition = Transition(key.fingerprint, key.state, after, reason, seconds)
    key.state = after
    return transition
