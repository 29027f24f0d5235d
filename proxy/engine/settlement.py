"""What one upstream's answer was worth: judged once, and stored where it deserves it."""

from collections.abc import Callable

from proxy.clock import Clock
from proxy.core.entry import Entry, Usage
from proxy.core.recording import NotStored, Recording
from proxy.core.rules import DEFAULT_FINISH_REASONS
from proxy.engine.entries import Entries
from proxy.engine.plan import UNRECORDED_BYTES, Plan
from proxy.engine.storing import entry_of, refusal
from proxy.upstream.base import Exchange


class Settlement:
    """Turns the verdict on a recording into an entry.

    `store_key` None means that the cache was not asked, and is not told. `replaces`: a fresh entry
    may be there. `began` is monotonic seconds at the time the upstream was asked; `void` says that
    somebody else has the right to this key by now.
    """

    def __init__(
        self,
        plan: Plan,
        exchange: Exchange,
        store_key: str | None,
        *,
        entries: Entries,
        clock: Clock,
        began: float,
        replaces: bool = False,
        void: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan = plan
        self.exchange = exchange
        self.usage: Usage | None = None
        self.stored: bool | None = None
        self.entry: Entry | None = None
        self.ttl_seconds: float | None = None
        self._entries = entries
        self._clock = clock
        self._began = began
        self._replaces = replaces
        self._void = void
        self._store_key = store_key
        self._refusal = refusal(plan, exchange) if store_key is not None else None
        self.not_stored: NotStored | None = self._refusal
        self._judged = False

    @property
    def is_judged(self) -> bool:
        """True once all is known: usage, and whether it is stored."""
        return self._judged

    @property
    def records(self) -> bool:
        """True where the answer can still become an entry."""
        return self._store_key is not None and self._refusal is None

    @property
    def max_bytes(self) -> int:
        """How many bytes of the body may be held."""
        rule = self.plan.derivation.rule
        return rule.max_entry_bytes if rule is not None and self.records else UNRECORDED_BYTES

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
        self.usage = usage
        if usage is not None:
            self.exchange.spent(usage.prompt_tokens + usage.completion_tokens)
        if not self.records:
            return
        refused = verdict if isinstance(verdict, NotStored) else self._store(verdict)
        self.stored = refused is None
        self.not_stored = refused

    def _store(self, recording: Recording) -> NotStored | None:
        rule, key = self.plan.derivation.rule, self._store_key
        assert rule is not None
        assert key is not None
        now = self._clock.wall()
        took = self._clock.monotonic() - self._began
        entry = entry_of(
            self.plan, rule, self.exchange, recording, store_key=key, now=now, took=took
        )
        self.ttl_seconds = entry.fresh_until - now
        self.entry = entry
        if self._void():
            return NotStored.LEASE_LOST
        if not self._entries.put(entry, replaces=self._replaces):
            return NotStored.QUEUE_FULL
        return None
