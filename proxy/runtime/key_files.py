"""Keys that stand in files, read again when the files change, as mounted secrets do."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import SecretStr

from proxy.clock import Clock
from proxy.runtime.build import key_secrets
from proxy.settings.key_files import read_key_file
from proxy.settings.models import UpstreamSettings, WeightedKey
from proxy.tasks import TaskGroup
from proxy.upstream.keypool import KeyPool

log = logging.getLogger("magic_proxy.upstream")

_LOOK_SECONDS: Final = 1.0

# The keys, or why there are none.
_Found: TypeAlias = tuple[str, ...] | str


@dataclass(slots=True)
class KeyFileWatch:
    """Which files there are, and what was found in them; says what has changed. Pure.

    What is new counts when it is found a second time: a file that is being written is not taken at
    its half. A file that is gone, empty or unreadable changes nothing, and is told of once.
    """

    in_force: dict[Path, tuple[str, ...]]
    _seen: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    _troubled: set[Path] = field(default_factory=set)

    def look(self, found: Mapping[Path, _Found]) -> set[Path]:
        """The files whose keys have changed: their new ones are in force."""
        changed: set[Path] = set()
        for path, keys in found.items():
            if isinstance(keys, str):
                self._seen.pop(path, None)
                if path not in self._troubled:
                    self._troubled.add(path)
                    log.warning("%s: %s; its old keys stay in force", path, keys)
                continue
            if path in self._troubled:
                self._troubled.discard(path)
                log.info("%s: the keys can be read again", path)
            if keys == self.in_force[path]:
                self._seen.pop(path, None)
            elif keys == self._seen.get(path):
                self.in_force[path] = keys
                changed.add(path)
            else:
                self._seen[path] = keys
        return changed


class KeyFiles:
    """Looks at the files of the settings in force, once a second, in a thread.

    Reading them whole is as cheap as asking for their times and sizes, and misses nothing.
    `changed` is called after keys have changed.
    """

    def __init__(self, clock: Clock, tasks: TaskGroup, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._tasks = tasks
        self._changed = changed
        self._watch = KeyFileWatch({})
        self._upstreams: Mapping[str, UpstreamSettings] = {}
        self._pools: Mapping[str, KeyPool] = {}
        self._running: asyncio.Task[None] | None = None

    def follow(
        self, upstreams: Mapping[str, UpstreamSettings], pools: Mapping[str, KeyPool]
    ) -> None:
        """Watch the files of these settings from now on, for these pools."""
        self._upstreams, self._pools = upstreams, pools
        self._watch = KeyFileWatch(
            {
                item.file: tuple(key.secret.get_secret_value() for key in item.keys)
                for upstream in upstreams.values()
                for item in upstream.api_keys
                if item.file is not None
            }
        )
        if self._watch.in_force and self._running is None:
            self._running = self._tasks.start(self._run(), name="key-files")

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            try:
                await self.look()
            except Exception:  # boundary: whatever a look stumbles over, the next one is made
                log.exception("the key files could not be looked at")

    async def look(self) -> None:
        """Look once."""
        watch = self._watch
        found = await asyncio.to_thread(_read_all, tuple(watch.in_force))
        if watch is not self._watch:
            return  # a reload came between, and has read them itself
        if changed := watch.look(found):
            for name, upstream in self._upstreams.items():
                if any(item.file in changed for item in upstream.api_keys):
                    self._renew(name, upstream)
            self._changed()

    def _renew(self, name: str, upstream: UpstreamSettings) -> None:
        keys: list[WeightedKey] = []
        for item in upstream.api_keys:
            if item.file is None:
                keys += item.keys
            else:
                texts = self._watch.in_force[item.file]
                keys += item.with_secrets(SecretStr(text) for text in texts)
        secrets = key_secrets(keys)
        pool = self._pools[name]
        before, after = set(pool.fingerprints), {secret.fingerprint for secret in secrets}
        pool.have(secrets)
        log.info(
            "upstream %s: keys were read again; new: %s; gone: %s",
            name,
            _named(after - before),
            _named(before - after),
        )


def _read_all(paths: Iterable[Path]) -> dict[Path, _Found]:
    return {path: _read(path) for path in paths}


def _read(path: Path) -> _Found:
    try:
        return read_key_file(path)
    except ValueError as error:
        return str(error)


def _named(fingerprints: set[str]) -> str:
    return ", ".join(sorted(fingerprints)) or "none"
