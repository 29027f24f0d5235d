"""What one worker allows connections."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`most` at once, None is no limit; seconds for a head, and between parts of a body."""

    head_seconds: float = 30.0
    gap_seconds: float = 60.0
    most: int | None = None
