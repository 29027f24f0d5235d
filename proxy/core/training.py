"""Training: a dictionary out of entries, and whether it is worth having.

Judged by what entries take in the store, header and all, that it was not trained with.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress, cycle
from typing import Final

import zstandard

from proxy.core.codec import encode, encode_header
from proxy.core.dictionaries import DICTIONARY_BYTES, Dictionary, takes_dictionary
from proxy.core.entry import Entry
from proxy.core.frames import FrameError

# Beyond 100 entries, or the first 4 KB of each, a dictionary gets no better (by 2 % at most); 256
# of 8 KB, 2 MB, are trained with in 50 to 100 ms of CPU.
FEWEST_SAMPLES: Final = 128
MOST_SAMPLES: Final = 256
SAMPLE_PAYLOAD_BYTES: Final = 8 * 1024
# One that gains less is not worth that entries depend on it; and two made of equally good samples
# differ by up to a tenth, so that less would replace one by another for nothing.
WORTHWHILE_SHARE: Final = 0.8

# An odd period, so that streams and others in turns do not all fall on one side.
_TRAINED_WITH: Final = (True, True, True, True, False)


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training: a dictionary, where it is worth having.

    `share` is what entries take with it, of what they take now (with the present dictionary, or
    without any); None where nothing could be trained.
    """

    dictionary: Dictionary | None
    share: float | None


class Reservoir:
    """A fair sample of all the entries that were offered since it was emptied; bounded."""

    def __init__(self, most: int = MOST_SAMPLES) -> None:
        self._most = most
        self._offered = 0
        self._samples: list[Entry] = []

    @property
    def samples(self) -> Sequence[Entry]:
        """Entries with no more than the first bytes of their payloads."""
        return tuple(self._samples)

    @property
    def is_enough(self) -> bool:
        """Whether one can train with what is there."""
        return len(self._samples) >= min(FEWEST_SAMPLES, self._most)

    def offer(self, entry: Entry, draw: Callable[[int], int]) -> None:
        """Take the entry or not; `draw(n)` gives a number below n, each with the same chance."""
        if not takes_dictionary(entry):
            return
        self._offered += 1
        if len(self._samples) < self._most:
            self._samples.append(_cut(entry))
        elif (place := draw(self._offered)) < self._most:
            self._samples[place] = _cut(entry)

    def empty(self) -> None:
        """Begin anew: what was stored long ago says little about what is stored now."""
        self._offered = 0
        self._samples.clear()


def train(
    samples: Sequence[Entry],
    *,
    trained_at: float,
    compress_above_bytes: int,
    present: Dictionary | None = None,
) -> Trained:
    """A dictionary for entries like `samples`, judged by a fifth of them.

    Takes up to 0.1 s, most of it outside the interpreter's lock: it belongs in a thread.
    `trained_at` is wall-clock seconds.
    """
    known = list(compress(samples, cycle(_TRAINED_WITH)))
    unknown = list(compress(samples, cycle(not each for each in _TRAINED_WITH)))
    dictionary = _trained(known, trained_at)
    if dictionary is None or not unknown:
        return Trained(None, None)

    def taken(by: Dictionary | None) -> int:
        return _stored_bytes(unknown, compress_above_bytes, by)

    size, now = taken(dictionary), taken(present)
    worthwhile = size <= WORTHWHILE_SHARE * min(now, taken(None))
    return Trained(dictionary if worthwhile else None, size / now)


def _trained(samples: Sequence[Entry], trained_at: float) -> Dictionary | None:
    # Headers and payloads are compressed each by themselves, so that is how they are learnt.
    pieces: list[bytes | bytearray | memoryview] = []
    for entry in samples:
        pieces += (encode_header(entry), entry.payload)
    try:
        content = zstandard.train_dictionary(DICTIONARY_BYTES, pieces).as_bytes()
        return Dictionary(content, trained_at=trained_at)
    except (FrameError, ValueError):  # they have nothing in common, or are too few
        return None


def _stored_bytes(
    entries: Iterable[Entry], compress_above_bytes: int, dictionary: Dictionary | None
) -> int:
    return sum(
        len(encode(entry, compress_above_bytes=compress_above_bytes, dictionary=dictionary))
        for entry in entries
    )


def _cut(entry: Entry) -> Entry:
    if len(entry.payload) <= SAMPLE_PAYLOAD_BYTES:
        return entry
    return replace(entry, payload=entry.payload[:SAMPLE_PAYLOAD_BYTES])
