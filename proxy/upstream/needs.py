"""What one request needs of the keys of its upstreams, read from its body once, where it counts."""

import asyncio
from typing import Final

from proxy.upstream.allowance import Need
from proxy.upstream.base import Outgoing, Profile
from proxy.upstream.prompt import Prompt, read_prompt
from proxy.upstream.running import Upstream

# A longer body is read in a thread.
_INLINE_BYTES: Final = 128 * 1024


class Needs:
    """Of one request for the internal model `model`, "" for none."""

    def __init__(self, outgoing: Outgoing, model: str) -> None:
        self._outgoing = outgoing
        self._model = model
        self._prompts: dict[int, Prompt] = {}
        self._last: dict[str, Need] = {}

    async def of(self, profile: Profile, upstream: Upstream) -> Need:
        """What it needs of a key of this upstream.

        The body is read only for keys with a limit on tokens, and for prompts that stick to keys.
        """
        need = await self._of(profile.model or self._model, upstream)
        self._last[upstream.config.name] = need
        return need

    def last(self, upstream: Upstream) -> Need:
        """What it needed of a key of this upstream when it last wanted one."""
        return self._last.get(upstream.config.name, Need())

    async def _of(self, model: str, upstream: Upstream) -> Need:
        pool, chars = upstream.pool, upstream.config.sticky_prefix_chars
        counts = pool is not None and pool.counts_tokens(model)
        body = self._outgoing.body
        if not isinstance(body, bytes) or not (chars or counts):
            return Need(model)
        prompt = self._prompts.get(chars)
        if prompt is None:
            if len(body) <= _INLINE_BYTES:
                prompt = read_prompt(body, chars)
            else:
                prompt = await asyncio.to_thread(read_prompt, body, chars)
            self._prompts[chars] = prompt
        return Need(model, prompt.prompt_tokens, prompt.output_tokens, prompt.prefix)
