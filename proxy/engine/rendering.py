"""An entry as one client wants it: in its form, under ids of its own, in a coding that it takes."""

import asyncio
from collections.abc import Hashable
from dataclasses import replace

from proxy.core.coding import gzipped, wants_gzip
from proxy.core.entry import Entry
from proxy.core.replay import FreshIds, Rendered, render
from proxy.engine.plan import Plan
from proxy.engine.ready import ReadyEntries

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


def rendered_now(
    plan: Plan, entry: Entry, now: float, ready: ReadyEntries | None
) -> Rendered | None:
    """The same, out of `ready` where it was made before; None also for what belongs in a thread."""
    memo = None if plan.renews_ids else ready
    found = memo.form(entry, _form(plan)) if memo is not None else None
    if found is None and len(entry.payload) <= INLINE_BYTES:
        found = rendered(plan, entry, now)
        _keep(plan, entry, found, memo)
    return found


async def put_into_form(
    plan: Plan, entry: Entry, now: float, ready: ReadyEntries | None = None
) -> Rendered | None:
    """The same, without holding the loop up."""
    found = rendered_now(plan, entry, now, ready)
    if found is None and len(entry.payload) > INLINE_BYTES:
        found = await asyncio.to_thread(rendered, plan, entry, now)
        _keep(plan, entry, found, None if plan.renews_ids else ready)
    return found


def _keep(plan: Plan, entry: Entry, found: Rendered | None, ready: ReadyEntries | None) -> None:
    if found is not None and ready is not None:
        ready.keep_form(entry, _form(plan), found)


def _form(plan: Plan) -> Hashable:
    return plan.wanted, wants_gzip(plan.call.headers)
