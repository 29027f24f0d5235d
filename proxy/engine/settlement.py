"""The account of one forwarded call: what its answer was worth, told once, when it is over."""

from dataclasses import replace

from proxy.clock import Clock
from proxy.core.entry import Usage
from proxy.core.outcome import MissReason, Outcome
from proxy.core.recording import NotStored, Recording
from proxy.core.rules import DEFAULT_FINISH_REASONS
from proxy.core.stored_headers import shown_request_id
from proxy.engine.base import Observer
from proxy.engine.entries import Entries
from proxy.engine.plan import Plan
from proxy.engine.storing import entry_of, refusal
from proxy.upstream.base import Exchange

# What is held of an answer that can't become an entry, to read its usage.
_UNRECORDED_BYTES = 1024 * 1024
# With these the look-up found nothing that could still be served.
_NO_FRESH_ENTRY = frozenset({MissReason.ABSENT, MissReason.EXPIRED, MissReason.UNREADABLE})


class Settlement:
    """Turns the verdict on a recording into an entry, and the whole into the final outcome.

    `store_key` None means that the cache was not asked, and is not told.
    """

    def __init__(
        self,
        plan: Plan,
        exchange: Exchange,
        outcome: Outcome,
        store_key: str | None,
        *,
        entries: Entries,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self.plan = plan
        self.exchange = exchange
        self._entries = entries
        self._clock = clock
        self._observer = observer
        self._store_key = store_key
        self._refusal = refusal(plan, exchange) if store_key is not None else None
        self._judged = False
        self._told = False
        self.outcome = replace(
            outcome,
            status=exchange.response.status,
            forward_status=exchange.response.status,
            upstream=exchange.upstream,
            request_id=shown_request_id(exchange.response.headers) or outcome.request_id,
            not_stored=self._refusal.value if self._refusal is not None else None,
        )

    @property
    def records(self) -> bool:
        """True where the answer can still become an entry."""
        return self._store_key is not None and self._refusal is None

    @property
    def max_bytes(self) -> int:
        """How many bytes of the body may be held."""
        rule = self.plan.derivation.rule
        return rule.max_entry_bytes if rule is not None and self.records else _UNRECORDED_BYTES

    @property
    def finish_reasons(self) -> frozenset[str]:
        """The finish reasons whose answers may be stored."""
        rule = self.plan.derivation.rule
        return rule.store_finish_reasons if rule is not None else DEFAULT_FINISH_REASONS

    def judge(self, verdict: Recording | NotStored, usage: Usage | None) -> None:
        """Take the verdict, once: store what may be stored; later verdicts are passed over."""
        if self._judged:
            return
        self._judged = True
        self.outcome = replace(self.outcome, usage=usage)
        if not self.records:
            return
        refused = verdict if isinstance(verdict, NotStored) else self._store(verdict)
        self.outcome = replace(
            self.outcome,
            stored=refused is None,
            not_stored=refused.value if refused is not None else None,
        )

    def end(self, *, complete: bool) -> None:
        """The client was sent everything, or was not; tells the outcome, once."""
        if self._told:
            return
        self._told = True
        duration = self._clock.monotonic() - self.plan.started
        self.outcome = replace(self.outcome, complete=complete, duration_seconds=duration)
        self._observer.told(self.outcome)

    def _store(self, recording: Recording) -> NotStored | None:
        rule, key = self.plan.derivation.rule, self._store_key
        assert rule is not None
        assert key is not None
        now = self._clock.wall()
        entry = entry_of(self.plan, rule, self.exchange, recording, store_key=key, now=now)
        self.outcome = replace(self.outcome, ttl_seconds=entry.fresh_until - now)
        replaces = self.outcome.detail not in _NO_FRESH_ENTRY
        return None if self._entries.put(entry, replaces=replaces) else NotStored.QUEUE_FULL
