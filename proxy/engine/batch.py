"""One call with several inputs: which items it wants, which it has, and where it got them from."""

from collections.abc import Iterable, Sequence
from typing import Final

from proxy.core.batches import Opener, Piece, joined
from proxy.core.decision import Forward, Hit, Refuse, StaleHit, after_lookup, unservable
from proxy.core.embeddings import FLOAT, NotAVector
from proxy.core.entry import Entry, Usage
from proxy.core.items import Items
from proxy.core.key import CacheKey
from proxy.core.outcome import Forwarded, MissReason
from proxy.core.shares import added
from proxy.core.transcript import read_usage
from proxy.engine.item_asking import Asked, Want
from proxy.engine.item_fetch import Fetch
from proxy.engine.plan import Plan

_NO_FRESH_ENTRY: Final = frozenset(
    {MissReason.ABSENT, MissReason.EXPIRED, MissReason.PURGED, MissReason.UNREADABLE}
)


class Batch:
    """Gathers entries until there is one for each item. `keys` are store keys, by position."""

    def __init__(self, plan: Plan, items: Items, keys: Sequence[str], *, with_key: bool) -> None:
        self.plan = plan
        self.with_key = with_key
        self.items = items
        self.keys = keys
        self.places: Final = {key: place for place, key in reversed(list(enumerate(keys)))}
        self.missing: dict[str, Forward | Refuse] = {}
        """Why there is no entry for it, in the order of the request."""
        self.stale: dict[str, Entry] = {}
        """What may serve of those that are missing, where the upstream fails."""
        self.entries: dict[str, Entry] = {}
        self.servable: dict[str, StaleHit] = {}
        """Those of the stale that may serve at once, while a new answer is fetched."""
        self.hits: set[str] = set()
        self.asked: list[Asked] = []
        """The answers to this call's own upstream requests."""
        self.reason: Forward | None = None
        """Why the upstream had to be asked: that of the first item that it was asked for."""
        self.not_stored = ""
        """Why something of that was not stored, "" where all was."""
        self._pieces: dict[str, Piece] = {}

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def distinct(self) -> list[str]:
        """Each item once, in the order of the request."""
        return list(dict.fromkeys(self.keys))

    @property
    def encoding(self) -> str:
        """The encoding of vectors that the client wants."""
        return self.plan.wanted.encoding or FLOAT

    def key_of(self, store_key: str) -> CacheKey:
        """The key of an item."""
        return self.items.keys[self.places[store_key]]

    def decide(
        self, store_keys: Iterable[str], found: Iterable[Entry | MissReason], now: float
    ) -> list[Entry]:
        """The entries that may serve at wall time `now`; what may not is missing."""
        rule, control = self.plan.derivation.rule, self.plan.control
        assert rule is not None, "only a request with a rule is looked up"
        usable: list[Entry] = []
        for store_key, entry in zip(store_keys, found, strict=True):
            decision = after_lookup(self.key_of(store_key), entry, control, rule, now=now)
            match decision:
                case Hit():
                    usable.append(decision.entry)
                case StaleHit(key=key):
                    self.servable[store_key] = decision
                    self.stale[store_key] = decision.entry
                    self.missing[store_key] = Forward(key, Forwarded.STALE, MissReason.EXPIRED)
                case Forward(stale=stale):
                    if stale is not None:
                        self.stale[store_key] = stale
                    self.missing[store_key] = decision
                case Refuse():
                    self.missing[store_key] = decision
        return usable

    def opened(self, entries: Sequence[Entry], opener: Opener) -> list[Piece | None]:
        """Their pieces in the wanted encoding, None for what has none; takes time, changes nothing.

        Of megabytes, in a thread.
        """
        return [self._open(entry, opener) for entry in entries]

    def _open(self, entry: Entry, opener: Opener) -> Piece | None:
        try:
            return opener.open(entry.payload, self.encoding)
        except NotAVector:
            return None

    def take(self, entries: Sequence[Entry], pieces: Sequence[Piece | None]) -> None:
        """These serve; one without a piece is missing."""
        for entry, piece in zip(entries, pieces, strict=True):
            if piece is None:
                self.missing[entry.key] = unservable(self.key_of(entry.key), self.plan.control)
            else:
                self.entries[entry.key] = entry
                self._pieces[entry.key] = piece
                self.missing.pop(entry.key, None)

    def looked_up(self) -> None:
        """What was taken so far was a hit, what is missing is not."""
        self.hits.update(self.entries)
        forwards = [why for why in self.missing.values() if isinstance(why, Forward)]
        self.reason = forwards[0] if forwards else None

    @property
    def serves_stale(self) -> bool:
        """True where nothing has to be waited for: what is missing may serve stale at once.

        One item that has to be asked for is waited for anyway, and the stale ones with it.
        """
        return bool(self.missing) and self.missing.keys() <= self.servable.keys()

    def account(self, fetch: Fetch) -> None:
        """What this call's own fetch came to is told with its outcome."""
        self.asked += fetch.unaccounted()
        self.not_stored = self.not_stored or fetch.not_stored

    def want(self, store_key: str) -> Want:
        """What is asked of the upstream for an item that is missing, or to be replaced."""
        place = self.places[store_key]
        why = self.missing.get(store_key)
        return Want(
            self.items.keys[place],
            store_key,
            self.items.values[place],
            replaces=why is None or why.reason not in _NO_FRESH_ENTRY,
        )

    def joined(self) -> tuple[bytes, Usage | None]:
        """The whole answer, and what it costs; of megabytes, in a thread."""
        pieces = [self._pieces[key] for key in self.keys]
        counts = added(piece.frame.counts for piece in pieces)
        return joined(pieces, counts), read_usage(counts)

    @property
    def bytes(self) -> int:
        """About how long the answer is."""
        return sum(len(self._pieces[key].vector) for key in self.keys)
