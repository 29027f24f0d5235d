"""What a client gets where no attempt succeeded."""

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.errors import CircuitOpen, KeysExhausted, UpstreamError, UpstreamTimeout
from proxy.upstream.base import Chain, Exchange
from proxy.upstream.needs import Needs
from proxy.upstream.running import Upstream
from proxy.upstream.verdict import KeyLimited, KeyRejected, Verdict


@dataclass(frozen=True, slots=True)
class _Held:
    """An error answer that the client gets if nothing better comes."""

    exchange: Exchange
    verdict: Verdict
    upstream: Upstream


class LastWord:
    """Keeps the last answer along a chain, and what went wrong since."""

    def __init__(self, chain: Chain, upstreams: Mapping[str, Upstream], needs: Needs) -> None:
        self._chain = chain
        self._upstreams = upstreams
        self._needs = needs
        self._held: _Held | None = None
        self._error: UpstreamError | None = None

    async def hold(self, exchange: Exchange, verdict: Verdict, upstream: Upstream) -> None:
        """Keep this answer instead of what was kept before.

        But not one that refuses a key while others are left: of them, what was learned before says
        more.
        """
        says_less = isinstance(verdict, KeyRejected) and not self._is_exhausted(upstream)
        if says_less and (self._held or self._error):
            await exchange.response.aclose()
            return
        before, self._held = self._held, _Held(exchange, verdict, upstream)
        self._error = None
        if before is not None:
            await before.exchange.response.aclose()

    async def drop(self) -> None:
        """Let go of what is kept."""
        held, self._held = self._held, None
        if held is not None:
            await held.exchange.response.aclose()

    def failed(self, error: UpstreamError) -> None:
        """An attempt got no answer."""
        self._error = error

    def was_open(self, upstream: Upstream) -> None:
        """No attempt was made; what was learned before says more, but for when to come again."""
        refusal, before = upstream.guard.refusal, self._error
        if before is None or (isinstance(before, CircuitOpen) and refusal.seconds < before.seconds):
            self._error = refusal

    def had_no_key(self, upstream: Upstream, now: float) -> None:
        """No key could be had at `now`; where none was left at all, that is the error."""
        if upstream.is_exhausted(self._needs.last(upstream), now):
            self._error = self._exhausted() or _rejected(upstream)

    def say(self) -> Exchange:
        """The last answer as it came, unless it speaks of keys that the client knows nothing of.

        Raises `UpstreamError` where there is none, or a better one.
        """
        held = self._held
        if held is None or (isinstance(held.verdict, KeyRejected) and self._error is not None):
            raise self._error or UpstreamTimeout("No upstream answered in time.")
        pool = held.upstream.pool
        if pool is not None and isinstance(held.verdict, KeyRejected | KeyLimited):
            is_rejected = isinstance(held.verdict, KeyRejected)
            exhausted = self._exhausted() if self._is_exhausted(held.upstream) else None
            if exhausted is not None and (is_rejected or len(pool) > 1):
                raise exhausted
            if is_rejected:
                raise _rejected(held.upstream)
        self._held = None
        return held.exchange

    def _is_exhausted(self, upstream: Upstream) -> bool:
        return upstream.is_exhausted(self._needs.last(upstream))

    def _exhausted(self) -> KeysExhausted | None:
        along = [self._upstreams[name] for name in {p.upstream for p in self._chain.every}]
        waits = [wait for each in along if (wait := each.soonest_key(self._needs.last(each)))]
        if not waits:
            return None
        return KeysExhausted(
            "Every key for this model is rate limited; try again later.",
            retry_after_seconds=min(waits),
        )


def _rejected(upstream: Upstream) -> UpstreamError:
    return UpstreamError(
        f"The upstream {upstream.config.name!r} takes none of the keys configured for it.",
        code="upstream_credentials_rejected",
    )
