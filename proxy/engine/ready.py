"""Entries that were read a moment ago, kept as they were decoded and in the forms asked for.

Reading an entry back costs a checksum, a frame, and a header in JSON: more than to look it up. What
was made of it is used again only as long as the store gives the very object it was made from, so
that it can't outlive its entry (B57).
"""

from collections.abc import Hashable
from typing import Final

from proxy.core.entry import Entry
from proxy.core.replay import Rendered

# What one costs beside the bytes of its bodies: the entry's texts, the objects, places in tables.
_OVERHEAD_BYTES: Final = 2048


class _Ready:
    __slots__ = ("entry", "forms", "size", "value")

    def __init__(self, value: bytes, entry: Entry) -> None:
        self.value = value
        self.entry = entry
        self.forms: dict[Hashable, Rendered] = {}
        self.size = len(entry.payload) + _OVERHEAD_BYTES


class ReadyEntries:
    """Up to `max_bytes` of them, counted without what the store holds; the oldest go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[str, _Ready] = {}
        self._bytes = 0

    def entry(self, key: str, value: bytes) -> Entry | None:
        """What `value` was decoded to, where it is the very object that was kept for `key`."""
        ready = self._held.get(key)
        return ready.entry if ready is not None and ready.value is value else None

    def keep(self, key: str, value: bytes, entry: Entry) -> None:
        """Remember what the store's `value` was decoded to."""
        self._drop(key)
        ready = _Ready(value, entry)
        if ready.size <= self._max_bytes:
            self._held[key] = ready
            self._add(ready.size)

    def form(self, entry: Entry, form: Hashable) -> Rendered | None:
        """The entry as it was put into a form before, where that is known of this very object."""
        ready = self._held.get(entry.key)
        return ready.forms.get(form) if ready is not None and ready.entry is entry else None

    def keep_form(self, entry: Entry, form: Hashable, rendered: Rendered) -> None:
        """Remember a form, where the entry is one that is kept."""
        ready = self._held.get(entry.key)
        if ready is None or ready.entry is not entry or form in ready.forms:
            return
        size = 0 if rendered.body is entry.payload else len(rendered.body)
        if ready.size + size <= self._max_bytes:
            ready.forms[form] = rendered
            ready.size += size
            self._add(size)

    def _add(self, size: int) -> None:
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._held)))

    def _drop(self, key: str) -> None:
        ready = self._held.pop(key, None)
        if ready is not None:
            self._bytes -= ready.size
