"""Looking through what a store holds: what each entry says of itself, without its payload."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from proxy.core.codec import meta_bytes
from proxy.core.entry import EntryMeta
from proxy.core.key import CacheKey
from proxy.engine.dictionaries import Dictionaries
from proxy.stores.base import Store

_BATCH_KEYS: Final = 100
# Holds what nearly all entries say before their payload; the others are asked again.
_HEAD_BYTES: Final = 2048
# 64 long tags in any script, and headers as long as a server allows, stay below this.
_MOST_HEAD_BYTES: Final = 256 * 1024


async def survey(
    store: Store,
    key_prefix: str,
    wants: Callable[[CacheKey], bool],
    dictionaries: Dictionaries,
) -> AsyncIterator[list[EntryMeta]]:
    """The entries whose key `wants` takes, some at a time; the loop has its turn between.

    What is no readable entry is passed over. Raises `StoreUnavailable`.
    """
    keys: list[str] = []
    async for key in store.scan(key_prefix):
        if not _is_wanted(key, key_prefix, wants):
            continue
        keys.append(key)
        if len(keys) == _BATCH_KEYS:
            yield await _metas(store, keys, dictionaries)
            await asyncio.sleep(0)
            keys = []
    if keys:
        yield await _metas(store, keys, dictionaries)


def _is_wanted(key: str, key_prefix: str, wants: Callable[[CacheKey], bool]) -> bool:
    try:
        return wants(CacheKey.parse(key, key_prefix))
    except ValueError:
        return False  # something else lies under the prefix: a lease, the log of purges


async def _metas(store: Store, keys: list[str], dictionaries: Dictionaries) -> list[EntryMeta]:
    metas: list[EntryMeta] = []
    for key, head in zip(keys, await store.heads(keys, _HEAD_BYTES), strict=True):
        needed = None if head is None else meta_bytes(head)
        if head is None or needed is None or needed > _MOST_HEAD_BYTES:
            continue
        whole: bytes | None = head
        if needed > len(head):
            (whole,) = await store.heads([key], needed)
        meta = await dictionaries.meta(whole or b"", key)
        if meta is not None:
            metas.append(meta)
    return metas
