"""The keys of one upstream as a state machine. Pure: `now` is monotonic seconds, handed in.

available ── limited ──▶ cooling ── time ──▶ available
    │                                            ▲
    └─ rejected ─▶ retired ── time ──▶ probed ───┘ works
                      ▲                  │
                      └──── rejected ────┘ for twice as long
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from proxy.upstream.allowance import Need, Use
from proxy.upstream.config import KeySecret
from proxy.upstream.limits_told import ToldLimits
from proxy.upstream.pooled_key import KeyNews, KeyState, KeyStatus, PooledKey, Transition
from proxy.upstream.verdict import (
    KeyLimited,
    KeyRejected,
    KeyWorks,
    UpstreamFault,
    Verdict,
)

# However often a key is rejected, it is probed once a day: accounts are reopened.
LONGEST_RETIREMENT_SECONDS = 86_400.0

# Where all keys are retired, one is tried so often all the same: it may not have been their fault.
LAST_RESORT_SECONDS: Final = 5.0

# Keys whose headroom is within a tenth of each other count as equal: load and weights decide.
_STEPS: Final = 10
_NO_NEED: Final = Need()
# By so much a time differs from itself after others were told of it.
_NEARLY_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Lease:
    """One use of one key; given back with `KeyPool.release`. `probe`: a retired key is tried.

    `index` is the key's number in its pool, never used again for another; `taken_at` is monotonic,
    `rejections` are those of the key until then. `is_early`: its time has not come, but no other
    key of the pool is left.
    """

    serial: int
    index: int
    secret: KeySecret
    probe: bool = False
    need: Need = field(default=_NO_NEED, repr=False)
    taken_at: float = 0.0
    rejections: int = 0
    is_early: bool = False


class KeyPool:
    """Gives out the key with the most headroom, then the least in flight, then in turns.

    In proportion to weight. Keys of which no limit is known are taken to have as much headroom as
    the best of the others. A request with a `prefix` gets the key that all with that prefix get,
    while that one has a tenth of its headroom left.

    `cooldown_seconds` counts for a limit without a time, `quota_cooldown_seconds` for a used-up
    account, `retire_seconds` until a rejected key is first probed. `on_news` is called when there
    begins to be something for `news` to tell.
    """

    def __init__(
        self,
        keys: Sequence[KeySecret],
        *,
        cooldown_seconds: float = 20.0,
        quota_cooldown_seconds: float = 3600.0,
        retire_seconds: float = 600.0,
    ) -> None:
        self._cooldown = cooldown_seconds
        self._quota_cooldown = quota_cooldown_seconds
        self._retire = retire_seconds
        self._turn = 0.0
        self._resort_at = 0.0
        self._serial = 0
        self._numbers = 0
        self._keys: dict[int, PooledKey] = {}
        self._open: dict[int, PooledKey] = {}
        self._news: dict[str, PooledKey] = {}
        self.on_news: Callable[[], None] = _nothing
        self.have(keys)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of every key, in the order of the settings."""
        return tuple(key.fingerprint for key in self._keys.values())

    def have(self, secrets: Sequence[KeySecret]) -> None:
        """Have these keys from now on; those that stay keep their numbers, and what is known.

        A key that is named twice counts once, as it is named first. Requests that hold a key which
        is gone finish with it. Raises `ValueError` for a weight that is not above 0.
        """
        self._have(secrets, tuple(self._keys.values()))

    def take_over(self, other: "KeyPool") -> None:
        """Go on with the keys that `other` has too, and all that is known of them.

        They are shared from now on: what requests under way there learn counts here too.
        """
        self._turn, self._resort_at = other._turn, other._resort_at  # noqa: SLF001  # its own kind
        self._news, self.on_news = other._news, other.on_news  # noqa: SLF001  # its own kind
        known = tuple(other._keys.values())  # noqa: SLF001  # its own kind
        secrets = [key.secret for key in self._keys.values()]
        self._keys, self._numbers = {}, 0
        self._have(secrets, known)

    def counts_tokens(self, model: str) -> bool:
        """True where a request's tokens matter to any key."""
        return any(key.allowance.counts_tokens(model) for key in self._keys.values())

    def acquire(
        self,
        now: float,
        excluded: Container[int] = (),
        *,
        may_probe: bool = True,
        need: Need = _NO_NEED,
    ) -> Lease | None:
        """A key whose number is not `excluded`, or None where each rests, is excluded, or used up.

        A retired key whose time has come goes first, so that it comes back while others work;
        without `may_probe` (the request can't be sent twice) it goes last. Where all are retired
        one is given out now and then before its time.
        """
        due: dict[int, PooledKey] = {}
        ready: dict[int, PooledKey] = {}
        for number, key in self._keys.items():
            if number in excluded or not key.may_be_used(now):
                continue
            if key.allowance.wait(need, now) <= 0.0:
                (due if key.state is KeyState.RETIRED else ready)[number] = key
        if due and (may_probe or not ready):
            first = min(due, key=lambda number: due[number].probe_at)
            return self._lease(first, need, now, probe=True)
        if ready:
            return self._lease(self._chosen(ready, need, now), need, now, probe=False)
        resorts = [n for n in self._last_resorts(now, need) if n not in excluded]
        if resorts:
            self._resort_at = now + LAST_RESORT_SECONDS
            lease = self._lease(min(resorts, key=self._order), need, now, probe=True)
            return replace(lease, is_early=True)
        return None

    def release(self, lease: Lease) -> None:
        """The use is over; a second release of one lease does nothing."""
        key = self._open.pop(lease.serial, None)
        if key is None:
            return
        key.in_flight -= 1
        if lease.probe:
            key.probing = False

    def report(self, lease: Lease, verdict: Verdict, now: float) -> Transition | None:
        """What the use showed, before its release; the change of state, where there is one."""
        key = self._open.get(lease.serial)
        if key is None:
            return None
        key.successes += isinstance(verdict, KeyWorks)
        key.failures += isinstance(verdict, KeyLimited | KeyRejected | UpstreamFault)
        match verdict:
            case KeyLimited(seconds, quota):
                default = self._quota_cooldown if quota else self._cooldown
                wait = max(default, seconds or 0.0) if quota else seconds
                return self._cool(key, lease, default if wait is None else wait, now, quota=quota)
            case KeyRejected(reason):
                return self._reject(key, lease, reason, now)
            case KeyWorks() if lease.probe and key.state is KeyState.RETIRED:
                return self._restore(key, now)
            case _:
                return None

    def told(self, lease: Lease, limits: ToldLimits, now: float) -> None:
        """What the answer said of the key's limits, before the lease's release."""
        if (key := self._open.get(lease.serial)) is not None:
            key.allowance.told(lease.need.model, limits, now)

    def spent(self, lease: Lease, tokens: int) -> None:
        """What the use cost, where that is known, once; also after the lease's release."""
        key = self._keys.get(lease.index)
        if key is not None:
            key.allowance.spent(lease.need, lease.taken_at, tokens)

    def settle(self, now: float) -> list[Transition]:
        """The keys whose cooling ended since it was last asked."""
        return [
            key.change(KeyState.AVAILABLE, "its time is over", key.cool_until)
            for key in self._keys.values()
            if key.state is KeyState.COOLING and key.cool_until <= now
        ]

    def soonest(self, now: float, need: Need = _NO_NEED) -> float | None:
        """Seconds until the first cooling or used-up key may be used; None where there is none."""
        waits = [
            wait
            for key in self._keys.values()
            if key.state is not KeyState.RETIRED
            and (wait := max(key.cool_until - now, key.allowance.wait(need, now))) > 0.0
        ]
        return min(waits, default=None)

    def exhausted(self, now: float, need: Need = _NO_NEED) -> bool:
        """True where no key can be given out, whichever a request has tried."""
        usable = any(
            key.may_be_used(now) and key.allowance.wait(need, now) <= 0.0
            for key in self._keys.values()
        )
        return not usable and not self._last_resorts(now, need)

    def is_short(self, now: float) -> bool:
        """True where some of the keys rest, are retired, or used up."""
        return any(not key.is_available(now) for key in self._keys.values())

    def states(self, now: float) -> tuple[KeyStatus, ...]:
        """Every key, in the order of the settings."""
        return tuple(key.status(now) for key in self._keys.values())

    def news(self, now: float) -> Mapping[str, KeyNews]:
        """By digest, what was learned here since it was last asked, as it stands now."""
        told = {digest: key.news(now) for digest, key in self._news.items()}
        for key in self._news.values():
            key.restored = False
        self._news.clear()
        return told

    def keep_news(self, digest: str, news: KeyNews) -> None:
        """Others could not be told: it is news again, as it stands when that is asked anew."""
        for key in self._keys.values():
            if key.digest == digest:
                self._news[digest] = key
                key.restored = news.restored and key.state is not KeyState.RETIRED

    def standing(self, now: float) -> Mapping[str, KeyNews]:
        """By digest, every key that rests, also where others told so."""
        return {
            key.digest: key.news(now)
            for key in self._keys.values()
            if key.state is KeyState.RETIRED or key.cool_until > now
        }

    def learn(self, digest: str, news: KeyNews, now: float) -> list[Transition]:
        """Take what another learned of a key; it never shortens a time that is running here."""
        if (mine := self._news.get(digest)) is not None:
            # What was learned here is younger: it may be the rejection of what had been restored,
            # or the restoring of what had been rejected.
            retired = 0.0 if mine.restored else news.retired_seconds
            news = replace(news, restored=False, retired_seconds=retired)
        return [
            change
            for key in self._keys.values()
            if key.digest == digest and (change := _learn(key, news, now)) is not None
        ]

    @property
    def has_uses(self) -> bool:
        """True where there is something for `uses` to tell."""
        return any(key.allowance.has_use for key in self._keys.values())

    def uses(self) -> Mapping[str, Use]:
        """By digest, what was used of keys with limits since this was last asked."""
        uses = ((key.digest, key.allowance.used()) for key in self._keys.values())
        return {digest: use for digest, use in uses if use is not None}

    def others_used(self, digest: str, use: Use, now: float) -> None:
        """Another process used a key: it counts for the limits of the settings here too."""
        for key in self._keys.values():
            if key.digest == digest:
                key.allowance.others_used(use, now)

    def _have(self, secrets: Sequence[KeySecret], known: Sequence[PooledKey]) -> None:
        if any(secret.weight <= 0 for secret in secrets):
            raise ValueError("the weight of a key is above 0")
        numbers = {key.secret.value: number for number, key in self._keys.items()}
        same = {key.secret.value: key for key in known}
        named: dict[str, KeySecret] = {}
        for secret in secrets:
            named.setdefault(secret.value, secret)
        self._keys = {}
        for value, secret in named.items():
            if (key := same.get(value)) is not None:
                key.reconfigure(secret)
            number = numbers.get(value)
            if number is None:
                number, self._numbers = self._numbers, self._numbers + 1
            self._keys[number] = key or PooledKey(secret)

    def _last_resorts(self, now: float, need: Need) -> dict[int, PooledKey]:
        """Those to try where all are retired; at most one of them in a while."""
        keys = self._keys
        if now < self._resort_at or any(k.state is not KeyState.RETIRED for k in keys.values()):
            return {}
        return {
            number: key
            for number, key in keys.items()
            if not key.probing and key.cool_until <= now and key.allowance.wait(need, now) <= 0.0
        }

    def _chosen(self, ready: Mapping[int, PooledKey], need: Need, now: float) -> int:
        if len(ready) == 1:
            return next(iter(ready))
        rooms = {number: key.allowance.headroom(need.model, now) for number, key in ready.items()}
        known = [room for room in rooms.values() if room is not None]
        best = max(known) if known else 1.0
        steps = {
            number: math.ceil(_STEPS * (best if room is None else room))
            for number, room in rooms.items()
        }
        if (prefix := need.prefix) is not None:
            roomy = [number for number, step in steps.items() if step > 1]
            if roomy:
                return max(roomy, key=lambda number: ready[number].affinity(prefix))
        most = max(steps.values())
        return min((number for number, step in steps.items() if step == most), key=self._order)

    def _order(self, number: int) -> tuple[float, float, int]:
        key = self._keys[number]
        return (key.in_flight / key.secret.weight, max(key.turn, self._turn), number)

    def _lease(self, number: int, need: Need, now: float, *, probe: bool) -> Lease:
        key = self._keys[number]
        self._turn = max(key.turn, self._turn)
        key.turn = self._turn + 1.0 / key.secret.weight
        key.in_flight += 1
        key.uses += 1
        key.probing = key.probing or probe
        key.allowance.take(need, now)
        self._serial += 1
        self._open[self._serial] = key
        return Lease(self._serial, number, key.secret, probe, need, now, key.rejections)

    def _cool(
        self, key: PooledKey, lease: Lease, seconds: float, now: float, *, quota: bool
    ) -> Transition | None:
        """Never shortens a time that is already running."""
        running = key.cool_until > now
        if now + seconds > key.cool_until:
            key.cool_until = now + seconds
            self._tell(key)
        if key.state is KeyState.RETIRED and not lease.probe:
            return None  # an answer from before the rejection does not bring it back
        if key.state is KeyState.COOLING and running:
            return None
        if key.state is KeyState.RETIRED:
            self._taken_back(key)
        reason = "its quota is used up" if quota else "rate limited"
        return key.change(KeyState.COOLING, reason, now, key.cool_until - now)

    def _reject(self, key: PooledKey, lease: Lease, reason: str, now: float) -> Transition | None:
        self._resort_at = now + LAST_RESORT_SECONDS
        if key.state is KeyState.RETIRED and (lease.is_early or not lease.probe):
            return None  # one rejection, seen by several requests at once, or before its time
        # Others may have probed it at the same time, and told of it: that is no second rejection.
        before = min(key.rejections, lease.rejections) if lease.probe else key.rejections
        seconds = min(self._retire * 2**before, LONGEST_RETIREMENT_SECONDS)
        key.rejections = max(key.rejections, min(before + 1, 30))
        key.probe_at = max(key.probe_at, now + seconds)
        self._tell(key)
        return key.change(KeyState.RETIRED, reason, now, seconds)

    def _restore(self, key: PooledKey, now: float) -> Transition:
        self._taken_back(key)
        return key.change(KeyState.AVAILABLE, "the upstream takes it again", now)

    def _taken_back(self, key: PooledKey) -> None:
        """Its next rejection is a first one; where it was tried early, its time had not come."""
        key.rejections, key.probe_at, key.restored = 0, 0.0, True
        self._tell(key)

    def _tell(self, key: PooledKey) -> None:
        first = not self._news
        self._news[key.digest] = key
        if first:
            self.on_news()


def _learn(key: PooledKey, news: KeyNews, now: float) -> Transition | None:
    if now + news.cooling_seconds > key.cool_until + _NEARLY_SECONDS:  # else it is its own echo
        key.cool_until = now + news.cooling_seconds
    cooling = key.cool_until - now
    if news.retired_seconds > 0.0:
        key.probe_at = max(now + news.retired_seconds, key.probe_at)
        key.rejections = max(key.rejections, news.rejections)
        if key.state is not KeyState.RETIRED:
            return key.change(KeyState.RETIRED, news.reason, now, news.retired_seconds)
    elif news.restored and key.state is KeyState.RETIRED:
        key.rejections, key.probe_at = 0, 0.0
        if cooling <= 0.0:
            return key.change(KeyState.AVAILABLE, "the upstream takes it again", now)
        return key.change(KeyState.COOLING, news.reason, now, cooling)
    elif cooling > 0.0 and key.state is KeyState.AVAILABLE:
        return key.change(KeyState.COOLING, news.reason, now, cooling)
    return None


def _nothing() -> None:
    """Nobody wants to know."""
