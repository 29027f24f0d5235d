"""An entry as one client wants it: in its form, under ids of its own, in a coding that it takes."""

import asyncio
from dataclasses import replace

from proxy.core.coding import gzipped, wants_gzip
from proxy.core.entry import Entry
from proxy.core.replay import FreshIds, Rendered, render
from proxy.engine.plan import Plan

# A longer payload is put into another form in a thread.
INLINE_BYTES = 64 * 1024


def rendered(plan: Plan, entry: Entry, now: float) -> Rendered | None:
    """The entry for this call at wall time `now`, or None where it can't be put into its form."""
    fresh = None
    if plan.renews_ids:
        fresh = FreshIds(id=f"chatcmpl-{plan.call.request_id}", created=int(now))
    found = render(entry, plan.call.endpoint, plan.wanted, fresh=fresh)
    if found is not None and wants_gzip(plan.call.headers):
        return replace(found, body=gzipped(found.body), content_encoding=b"gzip")
    return found


async def put_into_form(plan: Plan, entry: Entry, now: float) -> Rendered | None:
    """The same, without holding the loop up."""
    if len(entry.payload) <= INLINE_BYTES:
        return rendered(plan, entry, now)
    return await asyncio.to_thread(rendered, plan, entry, now)
