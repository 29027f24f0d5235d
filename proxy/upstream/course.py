"""One request's way through the keys and profiles of its chain."""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from proxy.clock import Clock
from proxy.errors import KeysExhausted, UpstreamError, UpstreamTimeout
from proxy.upstream.base import (
    AttemptObserver,
    Exchange,
    Outgoing,
    Profile,
    Transport,
    UpstreamRequest,
    UpstreamResponse,
)
from proxy.upstream.classify import BODY_STATUSES, LONGEST_BODY, classify
from proxy.upstream.config import UpstreamConfig
from proxy.upstream.headers import for_upstream
from proxy.upstream.keypool import KeyPool, KeyState, Lease, Transition
from proxy.upstream.outgoing import body_for, is_repeatable, url_for
from proxy.upstream.replay import Leased, read_ahead
from proxy.upstream.upload import Upload
from proxy.upstream.verdict import KeyLimited, KeyRejected, UpstreamFault, Verdict, result_of

log = logging.getLogger("magic_proxy.upstream")

# An error's body is short and comes with its headers; one that stalls is not waited for.
_ERROR_BODY_SECONDS = 5.0
# A longer body is looked through, and rewritten, in a thread.
_INLINE_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Upstream:
    """One upstream as it runs in this worker; `pool` is None where clients bring their own key."""

    config: UpstreamConfig
    transport: Transport
    pool: KeyPool | None


class _Next(Enum):
    KEY = auto()
    PROFILE = auto()


@dataclass(frozen=True, slots=True)
class _Held:
    """An error answer that the client gets if nothing better comes."""

    exchange: Exchange
    verdict: Verdict
    upstream: Upstream


class Course:
    """Runs once.

    Retried on the next key, then the next profile: an answer that refuses the key (429, 402,
    401, some 403), for any request whose body can be sent again, since the upstream did no work;
    a 5xx, 408, 529, or failed connection, for requests that may be worked on twice
    (`is_repeatable`). An upstream that accepts and then does not answer in time is not asked
    again with another key, it may still be at work: the next profile is.

    Without a key pool there is no second key, and with a single profile errors pass through
    unchanged: the client's SDK retries by itself. A client's own credential that was refused
    ends the course, so that nobody gets past it to a profile with keys.
    """

    def __init__(
        self,
        profiles: Sequence[tuple[Profile, Upstream]],
        outgoing: Outgoing,
        clock: Clock,
        *,
        strip_credentials: bool,
        observer: AttemptObserver | None = None,
    ) -> None:
        self._profiles = profiles
        self._outgoing = outgoing
        self._clock = clock
        self._strip = strip_credentials
        self._observer = observer
        # None: the body is in memory and can be sent again.
        self._upload = Upload(body) if isinstance(body := outgoing.body, AsyncIterator) else None
        self._stopped = False
        self._attempts = 0
        self._held: _Held | None = None
        self._error: UpstreamError | None = None
        first = profiles[0][1].config
        self._most = first.max_attempts
        total = first.timeouts.total_seconds
        self._deadline = None if total is None else clock.monotonic() + total

    async def run(self) -> Exchange:
        """The exchange with the first upstream that gave a usable answer, else the last answer."""
        try:
            for position in range(len(self._profiles)):
                if (exchange := await self._through(position)) is not None:
                    await self._drop_held()
                    return exchange
                if self._is_over():
                    break
            return await self._last()
        except BaseException:  # cancellation too: the held answer has a connection and a key
            await self._drop_held()
            raise

    async def _through(self, position: int) -> Exchange | None:
        """Try one profile with one key after another; None where the next profile is to come."""
        pool = self._profiles[position][1].pool
        tried: set[int] = set()
        here = 0
        while self._may_attempt(position, here):
            lease = None
            if pool is not None:
                lease = await self._lease(position, tried)
                if lease is None:
                    self._note_exhaustion(position)
                    return None
                tried.add(lease.index)
            here += 1
            attempt = await self._attempt(position, lease, here)
            if isinstance(attempt, Exchange):
                return attempt
            if attempt is _Next.PROFILE or pool is None or self._stopped:
                return None
        return None

    async def _lease(self, position: int, tried: set[int]) -> Lease | None:
        """A key that this request has not tried; the last profile may wait for its first one."""
        upstream = self._profiles[position][1]
        pool = upstream.pool
        assert pool is not None
        may_wait = position == len(self._profiles) - 1 and not tried
        patience = upstream.config.wait_for_key_seconds if may_wait else 0.0
        while True:
            now = self._clock.monotonic()
            for transition in pool.settle(now):
                _tell(upstream, transition)
            lease = pool.acquire(now, tried, may_probe=self._upload is None)
            soonest = pool.soonest(now)
            if lease is not None or soonest is None or soonest > patience:
                return lease
            # The floor keeps a clock of coarse steps from turning here.
            seconds = max(soonest, 0.001)
            patience -= seconds
            await self._clock.sleep(seconds)

    async def _attempt(self, position: int, lease: Lease | None, here: int) -> Exchange | _Next:
        profile, upstream = self._profiles[position]
        self._attempts += 1
        release: Callable[[], None] = _nothing
        if upstream.pool is not None and lease is not None:
            release = functools.partial(upstream.pool.release, lease)
        try:
            body, usage_requested = await self._body(profile, upstream.config)
            response = await upstream.transport.send(self._request(upstream, body, lease))
            try:
                judged = await self._judge(position, response, here)
            except BaseException:  # cancellation too: nobody else has this response
                await response.aclose()
                raise
        except UpstreamError as error:
            release()
            self._count(upstream, error.error_code or "error")
            return self._failed(error)
        except BaseException:  # cancellation too: the key goes back to its pool
            release()
            self._count(upstream, "cancelled")
            raise
        self._count(upstream, result_of(judged.verdict))
        if upstream.pool is not None and lease is not None:
            moment = self._clock.monotonic()
            _tell(upstream, upstream.pool.report(lease, judged.verdict, moment))
        exchange = Exchange(
            response=Leased(judged.response, release),
            upstream=upstream.config.name,
            profile=profile.name,
            fallback=position > 0,
            usage_requested=usage_requested,
            attempts=self._attempts,
        )
        if judged.is_final:
            return exchange
        release()
        await self._hold(_Held(exchange, judged.verdict, upstream))
        self._stopped = not self._is_resendable()
        return _Next.KEY

    async def _judge(self, position: int, response: UpstreamResponse, here: int) -> "_Judged":
        status, headers = response.status, response.headers
        wall = self._clock.wall()
        has_pool = self._profiles[position][1].pool is not None
        verdict = classify(status, headers, b"", wall)
        depends_on_body = has_pool and status in BODY_STATUSES
        if not depends_on_body and not self._has_other(position, verdict, here):
            return _Judged(response, verdict, is_final=True)
        ahead = await read_ahead(response, LONGEST_BODY, _ERROR_BODY_SECONDS)
        verdict = classify(status, headers, ahead.head, wall)
        is_trouble = isinstance(verdict, KeyLimited | KeyRejected | UpstreamFault)
        return _Judged(ahead, verdict, is_final=not is_trouble)

    def _count(self, upstream: Upstream, result: str) -> None:
        if self._observer is not None:
            self._observer.attempted(upstream.config.name, result)

    def _has_other(self, position: int, verdict: Verdict, here: int) -> bool:
        """True where this answer is trouble, and another key or profile can be asked instead.

        An answer that nothing can follow passes through as it comes, unread.
        """
        pool = self._profiles[position][1].pool
        has_next = position + 1 < len(self._profiles)
        match verdict:
            case UpstreamFault():
                has_key = pool is not None and here < len(pool)
                return self._is_repeatable() and (has_next or has_key)
            case KeyLimited(quota=False):
                return has_next and self._is_resendable()
            case _:
                return False

    def _failed(self, error: UpstreamError) -> _Next:
        self._error = error
        self._stopped = not self._is_repeatable()
        return _Next.PROFILE if isinstance(error, UpstreamTimeout) else _Next.KEY

    def _is_resendable(self) -> bool:
        return self._upload is None or not self._upload.begun

    def _is_repeatable(self) -> bool:
        if self._upload is not None:
            return not self._upload.begun
        return is_repeatable(self._outgoing)

    def _may_attempt(self, position: int, here: int) -> bool:
        """Each profile gets an attempt; more only as long as one is left for each that follows."""
        left = self._most - self._attempts
        following = len(self._profiles) - position - 1
        return not self._is_over() and left > (following if here else 0)

    def _is_over(self) -> bool:
        late = self._deadline is not None and self._clock.monotonic() >= self._deadline
        return self._stopped or late or self._attempts >= self._most

    async def _body(
        self, profile: Profile, config: UpstreamConfig
    ) -> tuple[bytes | Upload | None, bool]:
        raw = self._outgoing.body
        if not isinstance(raw, bytes):
            return self._upload, False
        if len(raw) <= _INLINE_BYTES:
            return body_for(config, profile, self._outgoing, raw)
        return await asyncio.to_thread(body_for, config, profile, self._outgoing, raw)

    def _request(
        self, upstream: Upstream, body: bytes | Upload | None, lease: Lease | None
    ) -> UpstreamRequest:
        headers = for_upstream(
            self._outgoing.headers,
            upstream.config,
            secret=None if lease is None else lease.secret,
            strip_credentials=self._strip,
            keep_length=self._upload is not None,
        )
        left = None if self._deadline is None else self._deadline - self._clock.monotonic()
        url = url_for(upstream.config, self._outgoing)
        return UpstreamRequest(self._outgoing.method, url, headers, body, left)

    async def _hold(self, held: _Held) -> None:
        await self._drop_held()
        self._held = held
        self._error = None

    async def _drop_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await held.exchange.response.aclose()

    def _note_exhaustion(self, position: int) -> None:
        """No key of this profile could be had; where none is left at all, that is the error."""
        upstream = self._profiles[position][1]
        assert upstream.pool is not None
        if upstream.pool.exhausted(self._clock.monotonic()):
            self._error = self._exhausted() or _rejected(upstream)

    def _exhausted(self) -> KeysExhausted | None:
        now = self._clock.monotonic()
        pools = {upstream.config.name: upstream.pool for _, upstream in self._profiles}
        waits = [wait for pool in pools.values() if pool and (wait := pool.soonest(now))]
        if not waits:
            return None
        return KeysExhausted(
            "Every key for this model is rate limited; try again later.",
            retry_after_seconds=min(waits),
        )

    async def _last(self) -> Exchange:
        """The last answer as it came, unless it speaks of keys that the client knows nothing of."""
        held, pool = self._held, None
        if held is not None:
            pool = held.upstream.pool
        if held is None or (isinstance(held.verdict, KeyRejected) and self._error is not None):
            raise self._error or UpstreamTimeout("No upstream answered in time.")
        if pool is not None and isinstance(held.verdict, KeyRejected | KeyLimited):
            is_rejected = isinstance(held.verdict, KeyRejected)
            exhausted = self._exhausted() if pool.exhausted(self._clock.monotonic()) else None
            if exhausted is not None and (is_rejected or len(pool) > 1):
                raise exhausted
            if is_rejected:
                raise _rejected(held.upstream)
        self._held = None
        return held.exchange


@dataclass(frozen=True, slots=True)
class _Judged:
    response: UpstreamResponse
    verdict: Verdict
    is_final: bool


def _rejected(upstream: Upstream) -> UpstreamError:
    return UpstreamError(
        f"The upstream {upstream.config.name!r} takes none of the keys configured for it.",
        code="upstream_credentials_rejected",
    )


def _tell(upstream: Upstream, transition: Transition | None) -> None:
    """One line for each change of a key's state."""
    if transition is None:
        return
    level = logging.INFO if transition.after is KeyState.AVAILABLE else logging.WARNING
    duration = "" if transition.seconds is None else f" for {transition.seconds:.0f} s"
    log.log(
        level,
        "upstream %s: %s is %s%s: %s",
        upstream.config.name,
        transition.fingerprint,
        transition.after,
        duration,
        transition.reason,
    )


def _nothing() -> None:
    """There is no key to give back."""
