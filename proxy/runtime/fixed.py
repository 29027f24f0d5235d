"""What a reload can't change, because it is held for the life of the process."""

from proxy.settings.models import Settings

_SECTIONS = ("server", "store", "prices")
# Of `server`, what each request looks up anew.
_NOT_FIXED = ("max_body_bytes", "websocket_idle_seconds")


def fixed_changes(first: Settings, now: Settings) -> list[str]:
    """What to say of the changes since the start that have to wait for the next one."""
    same = {name: getattr(now.server, name) for name in _NOT_FIXED}
    before = first.model_copy(update={"server": first.server.model_copy(update=same)})
    changes = [
        f"the changes under {section!r} take effect at the next start"
        for section in _SECTIONS
        if getattr(now, section) != getattr(before, section)
    ]
    if now.cache_settings.key_prefix != first.cache_settings.key_prefix:
        # Leases and purges of all who share the store stand under it.
        changes.append("the change of 'cache_settings.key_prefix' takes effect at the next start")
    return changes
