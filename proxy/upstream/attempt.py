"""One request's attempts: what goes out, and what is made of what comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from proxy.clock import Clock
from proxy.core.wire import media_type
from proxy.errors import NoConnectionFree, UpstreamError, UpstreamTimeout
from proxy.upstream.base import (
    AttemptObserver,
    Outgoing,
    Profile,
    UpstreamRequest,
    UpstreamResponse,
)
from proxy.upstream.classify import BODY_STATUSES, LONGEST_BODY, classify
from proxy.upstream.config import UpstreamConfig
from proxy.upstream.connection import least
from proxy.upstream.guard import Passage
from proxy.upstream.headers import for_upstream
from proxy.upstream.keypool import Lease
from proxy.upstream.masking import masked
from proxy.upstream.outgoing import body_for, is_repeatable, url_for
from proxy.upstream.replay import read_ahead
from proxy.upstream.running import Upstream
from proxy.upstream.troubles import TROUBLE_STATUSES, trouble_of
from proxy.upstream.upload import Upload
from proxy.upstream.verdict import (
    KeyLimited,
    KeyWorks,
    Neutral,
    Trouble,
    UpstreamFault,
    Verdict,
    result_of,
)

# An error's body is short and comes with its headers; one that stalls is not waited for.
_ERROR_BODY_SECONDS = 5.0
# What is missing was the proxy's own: the time of all attempts runs before the first is sent.
_NEARLY_ALL = 0.9
# A longer body is looked through, and rewritten, in a thread.
_INLINE_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Ahead:
    """What there is left to try, should an answer be no good.

    `again`: the same profile once more; `on`: another one; `troubles`: those with a chain of
    their own.
    """

    again: bool
    on: bool
    troubles: frozenset[Trouble]


@dataclass(slots=True)
class Answered:
    """An upstream's answer.

    It goes to the client if it `is_final`, and holds its key; else something better may come.
    """

    response: UpstreamResponse
    verdict: Verdict
    is_final: bool
    trouble: Trouble | None = None
    usage_requested: bool = False


class Attempts:
    """Makes them, and counts them; all together may take `seconds` (None: no limit)."""

    def __init__(
        self,
        outgoing: Outgoing,
        clock: Clock,
        *,
        strip_credentials: bool,
        seconds: float | None,
        observer: AttemptObserver | None,
    ) -> None:
        self.count = 0
        # An upstream failed over the request, and nobody knows how far it had come.
        self.may_be_done = False
        self._outgoing = outgoing
        self._clock = clock
        self._strip = strip_credentials
        self._observer = observer
        self._deadline = None if seconds is None else clock.monotonic() + seconds
        # None: the body is in memory and can be sent again.
        self._upload = Upload(body) if isinstance(body := outgoing.body, AsyncIterator) else None

    @property
    def seconds_left(self) -> float | None:
        """What is left of the time for all of them."""
        return None if self._deadline is None else self._deadline - self._clock.monotonic()

    @property
    def party(self) -> str:
        """Who asks."""
        return self._outgoing.party

    @property
    def is_upload(self) -> bool:
        """True for a body that can be sent once only."""
        return self._upload is not None

    @property
    def is_resendable(self) -> bool:
        """Whether a request on which no work was done can be sent again."""
        return self._upload is None or not self._upload.begun

    @property
    def is_repeatable(self) -> bool:
        """Whether a request that may have been worked on can be sent again."""
        if self._upload is not None:
            return not self._upload.begun
        return is_repeatable(self._outgoing)

    async def make(
        self,
        profile: Profile,
        upstream: Upstream,
        lease: Lease | None,
        passage: Passage,
        ahead: Callable[[], Ahead],
    ) -> Answered:
        """Send once, and tell key and circuit what became of it.

        `ahead` is asked where an answer is bad. The key of a final answer is for the caller to
        give back. Raises `UpstreamError`.
        """
        self.count += 1
        had_full_time = self._has_full_time(upstream.config)
        try:
            body, usage_requested = await self._body(profile, upstream.config)
            response = await upstream.transport.send(self._request(profile, upstream, body, lease))
            try:
                answered = await self._judged(upstream, response, passage, ahead)
                if lease is not None:
                    answered.response = await masked(answered.response, lease.secret)
            except BaseException:  # cancellation too: nobody else has this response
                await response.aclose()
                raise
        except NoConnectionFree:  # nothing was sent, and nothing learned of the upstream
            upstream.release(lease)
            raise
        except UpstreamError as error:
            upstream.release(lease)
            self.may_be_done = self.may_be_done or not error.connecting
            if error.connecting or had_full_time or not isinstance(error, UpstreamTimeout):
                passage.failed(error.message, connecting=error.connecting)
            self._tell(upstream, error.error_code or "error")
            raise
        except BaseException:  # cancellation too: the key goes back to its pool
            upstream.release(lease)
            self._tell(upstream, "cancelled")
            raise
        self._tell(upstream, result_of(answered.verdict))
        upstream.report(lease, answered.verdict, answered.response.headers)
        if not answered.is_final:
            upstream.release(lease)
        answered.usage_requested = usage_requested
        return answered

    async def _judged(
        self,
        upstream: Upstream,
        response: UpstreamResponse,
        passage: Passage,
        ahead_of: Callable[[], Ahead],
    ) -> Answered:
        """An answer that nothing can follow passes through as it comes, unread."""
        status, headers = response.status, response.headers
        wall = self._clock.wall()
        verdict = classify(status, headers, b"", wall)
        if isinstance(verdict, KeyWorks):
            response = await self._awaited(response)
            passage.answered()
            return Answered(response, verdict, is_final=True)
        if isinstance(verdict, UpstreamFault):
            self.may_be_done = True
            passage.failed(verdict.reason)
        else:
            passage.answered()
        ahead = ahead_of()
        tells_key = upstream.pool is not None and status in BODY_STATUSES
        may_follow = tells_key or self._may_follow(verdict, ahead)
        may_trouble = status in TROUBLE_STATUSES and bool(ahead.troubles) and self.is_resendable
        if not (may_follow or may_trouble):
            return Answered(response, verdict, is_final=True)
        read = await read_ahead(response, LONGEST_BODY, _ERROR_BODY_SECONDS)
        trouble = trouble_of(status, headers, read.head) if may_trouble else None
        if trouble in ahead.troubles:
            return Answered(read, verdict, is_final=False, trouble=trouble)
        verdict = classify(status, headers, read.head, wall)
        is_good = isinstance(verdict, KeyWorks | Neutral)
        return Answered(read, verdict, is_final=is_good or not may_follow)

    async def _awaited(self, response: UpstreamResponse) -> UpstreamResponse:
        """The answer, and what its reader awaits of it. Raises `UpstreamError` if it breaks off."""
        if not self._outgoing.awaited or media_type(response.headers) == "text/event-stream":
            return response
        read = await read_ahead(response, self._outgoing.awaited)
        if read.failure is not None:
            raise read.failure
        return read

    def _may_follow(self, verdict: Verdict, ahead: Ahead) -> bool:
        """True where the answer is bad, and another key or profile can be asked instead."""
        match verdict:
            case UpstreamFault():
                return self.is_repeatable and (ahead.on or ahead.again)
            case KeyLimited(quota=False):
                return ahead.on and self.is_resendable
            case _:
                return False

    def _has_full_time(self, config: UpstreamConfig) -> bool:
        """Whether a time-out says something of the upstream, not of those before it."""
        left = self.seconds_left
        own = least(config.timeouts.total_seconds, config.timeouts.first_byte_seconds)
        return left is None or (own is not None and left >= _NEARLY_ALL * own)

    def _tell(self, upstream: Upstream, result: str) -> None:
        if self._observer is not None:
            self._observer.attempted(upstream.config.name, result)

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
        self, profile: Profile, upstream: Upstream, body: bytes | Upload | None, lease: Lease | None
    ) -> UpstreamRequest:
        headers = for_upstream(
            self._outgoing.written or self._outgoing.headers,
            upstream.config,
            secret=None if lease is None else lease.secret,
            strip_credentials=self._strip,
            keep_length=self._upload is not None,
            upgrade=self._outgoing.upgrade,
        )
        url = url_for(upstream.config, profile, self._outgoing)
        return UpstreamRequest(
            self._outgoing.method, url, headers, body, self.seconds_left, self._outgoing.upgrade
        )
