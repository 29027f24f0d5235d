"""One key of a pool: its state, its allowance, what it was used for. Pure: `now` is handed in."""

import hashlib
import math
from dataclasses import dataclass, field
from enum import StrEnum

from proxy.upstream.allowance import Allowance, LimitStatus, Need
from proxy.upstream.config import KeySecret


class KeyState(StrEnum):
    """Where a key stands."""

    # It is given out.
    AVAILABLE = "available"
    # The upstream said to wait, or its time-out after a 429 runs.
    COOLING = "cooling"
    # The upstream rejected it; it is probed with one real request at a time later on.
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Transition:
    """A key changed its state; `seconds` is for how long, where that is known."""

    fingerprint: str
    after: KeyState
    reason: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class KeyNews:
    """What others should know of a key. Times are seconds from now; 0 is none.

    `restored`: it was rejected, and is taken again.
    """

    cooling_seconds: float = 0.0
    retired_seconds: float = 0.0
    rejections: int = 0
    restored: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """One key as metrics, health and the admin see it.

    `seconds` until it may be used or probed, `since_seconds` ago its state changed (None: never
    yet), `reason` why. A key that only its limits hold back is told as cooling. `headroom` is the
    share left of its tightest limit, None where it has none that is known. `failures` are refusals
    of the key and faults of the upstream; requests that it found fault with are neither.
    """

    fingerprint: str
    state: KeyState
    in_flight: int
    seconds: float = 0.0
    since_seconds: float | None = None
    reason: str = ""
    uses: int = 0
    successes: int = 0
    failures: int = 0
    headroom: float | None = None
    limits: tuple[LimitStatus, ...] = ()


@dataclass(slots=True, eq=False)
class PooledKey:
    """Pools that follow each other after a reload share it, with the requests that hold it."""

    secret: KeySecret
    fingerprint: str = field(init=False)
    digest: str = field(init=False)
    allowance: Allowance = field(init=False)
    state: KeyState = KeyState.AVAILABLE
    reason: str = ""
    since: float | None = None
    in_flight: int = 0
    # Start-time fair queueing: the virtual time at which this key's next turn may start.
    turn: float = 0.0
    cool_until: float = 0.0
    probe_at: float = 0.0
    rejections: int = 0
    probing: bool = False
    restored: bool = False
    uses: int = 0
    successes: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        self.fingerprint, self.digest = self.secret.fingerprint, self.secret.digest
        self.allowance = Allowance(self.secret.requests_per_minute, self.secret.tokens_per_minute)

    def reconfigure(self, secret: KeySecret) -> None:
        """The same credential, with the weight and limits that now stand in the settings."""
        self.secret = secret
        self.allowance.limit(secret.requests_per_minute, secret.tokens_per_minute)

    def may_be_used(self, now: float) -> bool:
        """True where it can be given out, limits aside; a retired one as a probe that is due."""
        if self.cool_until > now:
            return False
        return self.state is not KeyState.RETIRED or (self.probe_at <= now and not self.probing)

    def is_available(self, now: float) -> bool:
        """True where its `status` is that it is; costs less to ask."""
        is_out = self.state is KeyState.RETIRED or self.cool_until > now
        return not is_out and self.allowance.wait(Need(), now) <= 0.0

    def change(
        self, after: KeyState, reason: str, now: float, seconds: float | None = None
    ) -> Transition:
        transition = Transition(self.fingerprint, after, reason, seconds)
        self.state, self.reason, self.since = after, reason, now
        self.restored = self.restored and after is not KeyState.RETIRED
        return transition

    def news(self, now: float) -> KeyNews:
        retired = self.state is KeyState.RETIRED
        return KeyNews(
            cooling_seconds=max(self.cool_until - now, 0.0),
            # Also one whose probe is due: it is for others to probe too.
            retired_seconds=max(self.probe_at - now, 0.001) if retired else 0.0,
            rejections=self.rejections if retired else 0,
            restored=self.restored,
            reason=self.reason,
        )

    def status(self, now: float) -> KeyStatus:
        state, reason, until, since = self.state, self.reason, now, self.since
        if state is KeyState.COOLING and self.cool_until <= now:
            state, reason, since = KeyState.AVAILABLE, "its time is over", self.cool_until
        match state:
            case KeyState.COOLING:
                until = self.cool_until
            case KeyState.RETIRED:
                until = self.probe_at
            case KeyState.AVAILABLE:
                if (wait := self.allowance.wait(Need(), now)) > 0:
                    state, reason, until = KeyState.COOLING, "its limit is used up", now + wait
                    since = None
        return KeyStatus(
            fingerprint=self.fingerprint,
            state=state,
            in_flight=self.in_flight,
            seconds=max(until - now, 0.0),
            since_seconds=None if since is None else now - since,
            reason=reason,
            uses=self.uses,
            successes=self.successes,
            failures=self.failures,
            headroom=self.allowance.tightest(now),
            limits=tuple(self.allowance.statuses(now)),
        )

    def affinity(self, prefix: bytes) -> float:
        """Its score for a prefix: the key with the highest one is preferred (rendezvous hashing).

        In proportion to weight; a key that comes or goes moves only its own share of prefixes.
        """
        mixed = hashlib.blake2b(self.digest.encode(), key=prefix, digest_size=8).digest()
        share = ((int.from_bytes(mixed) >> 12) + 0.5) / 2**52  # never 0 or 1
        return -self.secret.weight / math.log(share)
