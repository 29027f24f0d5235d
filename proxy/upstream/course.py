"""One request's way through the keys and profiles of its chain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

from proxy.clock import Clock
from proxy.errors import NoConnectionFree, UpstreamBusy, UpstreamError, UpstreamTimeout
from proxy.upstream.attempt import Ahead, Answered, Attempts
from proxy.upstream.base import AttemptObserver, Chain, Exchange, Outgoing, Profile
from proxy.upstream.connection import least
from proxy.upstream.gate import Slot
from proxy.upstream.guard import Passage
from proxy.upstream.keypool import Lease
from proxy.upstream.last_word import LastWord
from proxy.upstream.needs import Needs
from proxy.upstream.replay import Leased
from proxy.upstream.running import Upstream
from proxy.upstream.verdict import KeyLimited, KeyRejected, KeyUnfit, Trouble, UpstreamFault


@dataclass(slots=True)
class _Turn:
    """How it goes with one profile.

    `tried` and `refused` are indexes of keys. `owes`: the upstream failed, and the next attempt is
    the retry of that; `repeats`: a key that was not refused may be used once more for it.
    `lacked_key`: when there was none to try; one is waited for until `waits_until` (both monotonic
    seconds). `slot`: its place at the upstream, where places are limited.
    """

    profile: Profile
    upstream: Upstream
    attempts: int = 0
    tried: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    owes: bool = False
    repeats: bool = False
    lacked_key: float | None = None
    waits_until: float | None = None
    slot: Slot | None = None


class Course:
    """Runs once.

    Retried on the next key, then the next profile: an answer that refuses the key (429, 402,
    401, some 403), for any request whose body can be sent again, since the upstream did no work;
    a 5xx, 408, or failed connection, for requests that may be worked on twice
    (`is_repeatable`). Each key is used once; but while some of the pool rest or are retired, one
    that was not refused takes their turns where the upstream failed. Retries after a failure come
    out of the upstream's budget. An upstream that accepts and then does not answer in time is not
    asked again with another key, it may still be at work: the next profile is. So it is where a
    circuit is open.

    A request that a model finds too long, or that a filter does not let through, goes on along
    the chain for that, if the model has one; each profile is asked once.

    Without a key pool there is no second key, and with a single profile errors pass through
    unchanged: the client's SDK retries by itself. A client's own credential that was refused
    ends the course, so that nobody gets past it to a profile with keys.
    """

    def __init__(
        self,
        chain: Chain,
        upstreams: Mapping[str, Upstream],
        outgoing: Outgoing,
        clock: Clock,
        *,
        strip_credentials: bool,
        shows_names: bool = True,
        observer: AttemptObserver | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._observer = observer
        self._shows_names = shows_names
        self._chain = chain
        self._ahead = list(chain.profiles)
        self._met: set[str] = set()
        self._needs = Needs(outgoing, chain.model)
        self._last_word = LastWord(chain, upstreams, self._needs)
        config = upstreams[chain.profiles[0].upstream].config
        self._most = config.max_attempts
        self._stopped = False
        self._attempts = Attempts(
            outgoing,
            clock,
            strip_credentials=strip_credentials,
            seconds=config.timeouts.total_seconds,
            observer=observer,
        )

    async def run(self) -> Exchange:
        """The exchange with the first upstream that gave a usable answer, else the last answer."""
        try:
            while self._ahead and not self._is_over():
                profile = self._ahead.pop(0)
                self._met.add(profile.name)
                turn = _Turn(profile, self._upstreams[profile.upstream])
                if (exchange := await self._through(turn)) is not None:
                    return await self._better(exchange)
            return self._last_word.say()
        except BaseException as error:  # cancellation too: the held answer has connection and key
            if isinstance(error, UpstreamError):
                error.may_be_done = self._attempts.may_be_done
            await self._last_word.drop()
            raise

    async def _better(self, exchange: Exchange) -> Exchange:
        """This one, in place of what was held."""
        try:
            await self._last_word.drop()
        except BaseException:  # cancellation too: nobody else has this response
            await exchange.response.aclose()
            raise
        return exchange

    async def _through(self, turn: _Turn) -> Exchange | None:
        """Try one profile; None where the next one is to come.

        Who waits for a key has no place at the upstream meanwhile, nor the probe of its circuit.
        """
        while (exchange := await self._in_turn(turn)) is None:
            lacked, turn.lacked_key = turn.lacked_key, None
            if lacked is None:
                return None
            if not await self._key_comes(turn, lacked):
                self._last_word.had_no_key(turn.upstream, lacked)
                return None
        return exchange

    async def _in_turn(self, turn: _Turn) -> Exchange | None:
        """Try one profile when it is this request's turn."""
        gate = turn.upstream.gate
        if gate is None:
            return await self._tried(turn)
        if turn.upstream.guard.seconds_to_probe > 0.0:  # else it waits in line for nothing
            self._was_open(turn.upstream)
            return None
        try:
            slot = turn.slot = await gate.enter(self._attempts.party, self._attempts.seconds_left)
        except UpstreamBusy as error:
            is_full = error.error_code == "upstream_queue_full"
            self._withhold(turn.upstream, "queue-full" if is_full else "queue-timeout")
            self._last_word.failed(error)
            return None
        if self._observer is not None:
            self._observer.waited(turn.upstream.config.name, slot.waited_seconds)
        exchange = None
        try:
            exchange = await self._tried(turn)
        finally:
            if exchange is None:
                slot.leave()
        return exchange

    async def _tried(self, turn: _Turn) -> Exchange | None:
        """Try one profile with one key after another; None where the next profile is to come."""
        upstream = turn.upstream
        while self._may_attempt(turn):
            passage = upstream.guard.admit()
            if passage is None:
                self._was_open(upstream)
                return None
            with passage:
                if turn.owes and not upstream.guard.may_retry:
                    self._withhold(upstream, "retry-budget")
                    return None
                lease = None
                if upstream.pool is not None:
                    lease = await self._lease(turn)
                    if lease is None:
                        return None
                if turn.owes:
                    upstream.guard.retried()
                turn.owes = False
                result = await self._attempt(turn, lease, passage)
            if isinstance(result, Answered) and result.is_final:
                return self._exchange(turn, lease, result)
            if not await self._goes_on(turn, lease, result):
                return None
        return None

    async def _lease(self, turn: _Turn) -> Lease | None:
        """A key that this request has not tried."""
        upstream, may_probe = turn.upstream, not self._attempts.is_upload
        need = await self._needs.of(turn.profile, upstream)
        now = upstream.clock.monotonic()
        lease = upstream.lease(now, turn.tried, need, may_probe=may_probe)
        if lease is None and turn.repeats and upstream.is_short_of_keys:
            lease = upstream.lease(now, turn.refused, need, may_probe=False)
        if lease is None:
            turn.lacked_key = now
        else:
            turn.tried.add(lease.index)
        return lease

    async def _key_comes(self, turn: _Turn, now: float) -> bool:
        """Wait for a key to try; only the last profile may, and only for its first one."""
        if self._ahead or turn.tried:
            return False
        upstream = turn.upstream
        if turn.waits_until is None:
            turn.waits_until = now + upstream.config.wait_for_key_seconds
        patience = least(turn.waits_until - now, self._attempts.seconds_left) or 0.0
        seconds = upstream.soonest_key(self._needs.last(upstream), now)
        if seconds is None or seconds > patience:
            return False
        # The floor keeps a clock of coarse steps from turning here.
        await upstream.clock.sleep(max(seconds, 0.001))
        return True

    async def _attempt(
        self, turn: _Turn, lease: Lease | None, passage: Passage
    ) -> Answered | UpstreamError:
        if not turn.attempts:
            turn.upstream.guard.asked()
        turn.attempts += 1
        ahead = partial(self._ahead_of, turn)
        try:
            return await self._attempts.make(turn.profile, turn.upstream, lease, passage, ahead)
        except UpstreamError as error:
            return error

    async def _goes_on(
        self, turn: _Turn, lease: Lease | None, result: Answered | UpstreamError
    ) -> bool:
        """Take note of what did not succeed; whether the same profile is asked again."""
        if isinstance(result, NoConnectionFree):
            self._withhold(turn.upstream, "no-connection-free")
            self._last_word.failed(result)
            return False
        if isinstance(result, UpstreamError):
            self._last_word.failed(result)
            attempts = self._attempts
            no_work = result.connecting
            self._stopped = not (attempts.is_resendable if no_work else attempts.is_repeatable)
            turn.owes, turn.repeats = True, not result.connecting
            may_be_at_work = isinstance(result, UpstreamTimeout)
            return turn.upstream.pool is not None and not (self._stopped or may_be_at_work)
        await self._last_word.hold(
            self._exchange(turn, lease, result), result.verdict, turn.upstream
        )
        self._stopped = not self._attempts.is_resendable
        match result.verdict:
            case UpstreamFault(again=again):
                turn.owes, turn.repeats = True, again
            case KeyLimited() | KeyRejected() | KeyUnfit() if lease is not None:
                turn.refused.add(lease.index)
            case _:
                pass
        if result.trouble is not None:
            self._ahead = self._instead(result.trouble)
            return False
        return turn.upstream.pool is not None and not self._stopped

    def _ahead_of(self, turn: _Turn) -> Ahead:
        pool = turn.upstream.pool
        again = pool is not None and self._attempts.count < self._most
        if again and turn.attempts >= len(pool or ()):
            again = turn.upstream.is_short_of_keys
        troubles = frozenset(trouble for trouble in Trouble if self._instead(trouble))
        return Ahead(again=again, on=bool(self._ahead), troubles=troubles)

    def _instead(self, trouble: Trouble) -> list[Profile]:
        """Those to ask because of this trouble that were not asked yet."""
        match trouble:
            case Trouble.CONTEXT_WINDOW:
                profiles = self._chain.context_window
            case Trouble.CONTENT_POLICY:
                profiles = self._chain.content_policy
            case _:
                assert_never(trouble)
        return [profile for profile in profiles if profile.name not in self._met]

    def _may_attempt(self, turn: _Turn) -> bool:
        """Each profile gets an attempt; more only as long as one is left for each that follows."""
        left = self._most - self._attempts.count
        return not self._is_over() and left > (len(self._ahead) if turn.attempts else 0)

    def _is_over(self) -> bool:
        left = self._attempts.seconds_left
        is_late = left is not None and left <= 0.0
        return self._stopped or is_late or self._attempts.count >= self._most

    def _exchange(self, turn: _Turn, lease: Lease | None, answered: Answered) -> Exchange:
        """Closing a final answer gives key and slot back; another one holds neither."""
        upstream, profile = turn.upstream, turn.profile
        name, response = upstream.config.name, answered.response
        if answered.is_final:
            releases: list[Callable[[], None]] = [partial(upstream.release, lease)]
            if turn.slot is not None:
                releases.append(turn.slot.leave)
            response = Leased(response, releases)
        shown = name if profile.name == name else f"{name}/{profile.name}"
        return Exchange(
            response=response,
            upstream=name,
            profile=profile.name,
            fallback=profile is not self._chain.profiles[0],
            usage_requested=answered.usage_requested,
            attempts=self._attempts.count,
            spent=partial(upstream.spent, lease),
            shown_as=shown if self._shows_names else None,
        )

    def _was_open(self, upstream: Upstream) -> None:
        self._withhold(upstream, "circuit-open")
        self._last_word.was_open(upstream)

    def _withhold(self, upstream: Upstream, reason: str) -> None:
        if self._observer is not None:
            self._observer.withheld(upstream.config.name, reason)
