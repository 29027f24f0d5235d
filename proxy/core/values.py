"""Frozen values of which every request makes many: `@value(frozen=True, slots=True)`.

The type checker sees a frozen dataclass, and refuses to have one changed. At run time nothing is in
the way: to refuse assignments, a frozen class makes its own by five times as slow a way, which came
to a tenth of a hit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:

    def value(*, frozen: bool, slots: bool) -> Callable[[type], type]:
        """A dataclass that compares and hashes as a frozen one does."""
        return dataclass(slots=slots, unsafe_hash=frozen)


__all__ = ["value"]
