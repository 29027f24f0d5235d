"""A lease that is still being released is one's own: what it tells of was known before."""

import pytest

from tests.coalescing import FakeCoalescer, FakeMedium
from tests.unit.engine.kit import COMPLETION, Engine, Said, ScriptedForwarder, told

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

NEW = COMPLETION.replace(b'"hi"', b'"new"')


async def test_B13_a_client_that_wants_nothing_older_never_gets_what_its_worker_just_stored() -> (
    None
):
    engine = Engine(
        forwarder=ScriptedForwarder(Said(), Said(chunks=(NEW,))),
        coalescer=FakeCoalescer(FakeMedium()),
    )
    engine.store.stalled = {"put"}  # so the lease is held until the entry is written
    first = await engine.ask()
    await engine.store.reached["put"].wait()
    engine.clock.advance(1)

    asking = engine.tasks.start(
        engine.ask_with((b"cache-control", b"max-age=0")), name="ask", awaited=True
    )
    engine.store.gate.set()
    answer = await asking

    assert (first.body, answer.body) == (COMPLETION, NEW)
    assert "collapsed" not in told(answer, b"cache-status")
    assert len(engine.forwarder.sent) == 2
    await engine.stop()
