"""What the log says of keys: one line for each change of a key's state."""

import logging

from proxy.upstream.pooled_key import KeyState, Transition

log = logging.getLogger("magic_proxy.upstream")


def tell(upstream: str, transition: Transition | None, *, by_others: bool = False) -> None:
    """Log a change, if there is one; `by_others`: another worker or replica learned of it."""
    if transition is None:
        return
    level = logging.INFO if transition.after is KeyState.AVAILABLE else logging.WARNING
    duration = "" if transition.seconds is None else f" for {transition.seconds:.0f} s"
    log.log(
        level,
        "upstream %s: %s is %s%s: %s%s",
        upstream,
        transition.fingerprint,
        transition.after,
        duration,
        transition.reason,
        ", as others found" if by_others else "",
    )
