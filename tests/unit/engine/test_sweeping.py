"""The sweep: space comes back, slowly, and nothing that lives is lost (B54)."""

import pytest

from proxy.core.marks import EVERYTHING
from proxy.core.selectors import Mark
from proxy.errors import StoreUnavailable
from proxy.stores.base import Put
from proxy.stores.marks import Reading
from proxy.stores.marks_local import LocalMarkLog
from tests.fakes import FakeClock
from tests.unit.engine.purges import PREFIX, Parts, Watched, key_of
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def test_B54_what_was_purged_for_good_is_deleted_and_nothing_else() -> None:
    parts = Parts()
    for number in range(500):
        await parts.put(number, tags=("odd" if number % 2 else "even",))
    await parts.purge(tag="even", soft=True)
    await parts.purge(tag="odd")
    new = await parts.put(1, tags=("odd",))
    await parts.store.put_many([Put(key_of(7), b"rubbish", parts.clock.wall() + 60)])
    await parts.swept()
    assert await parts.held() == {1, 7, *range(0, 500, 2)}
    assert new.key not in parts.store.deleted


async def test_B54_a_sweep_takes_its_time() -> None:
    parts = Parts()
    for number in range(1000):
        await parts.put(number)
    began = parts.clock.monotonic()
    await parts.purge(all=True)
    await parts.swept()
    assert await parts.held() == set()
    assert parts.clock.monotonic() - began == pytest.approx(2.0 + 10 * 0.05)


async def test_B54_purges_that_come_together_are_one_sweep() -> None:
    parts = Parts()
    for number in range(300):
        await parts.put(number, tags=(f"t{number}",))
    parts.clock.awake.clear()
    for number in range(200):
        await parts.purge(tag=f"t{number}")
    parts.clock.awake.set()
    await parts.swept()
    assert await parts.held() == set(range(200, 300))
    assert len(parts.store.head_lengths) == 300


async def test_B54_a_purge_during_a_sweep_is_swept_too() -> None:
    parts = Parts()
    for number in range(300):
        await parts.put(number, tags=("late" if number < 10 else "early",))
    await parts.purge(tag="early")
    await parts.store.deleting.wait()
    await parts.purge(tag="late")
    await parts.swept()
    assert await parts.held() == set()
    assert parts.store.most_scanning == 1


async def test_B54_a_sweep_that_is_cut_short_leaves_nothing_served_and_is_taken_up_by_the_next() -> (
    None
):
    parts = Parts()
    for number in range(300):
        await parts.put(number, tags=("t",))
    await parts.purge(tag="t")
    await parts.store.deleting.wait()
    await parts.tasks.cancel()
    left = await parts.held()
    assert 0 < len(left) < 300
    assert await parts.served() == set()
    await parts.purge(tag="t")
    await parts.swept()
    assert await parts.held() == set()


async def test_B54_each_tier_is_judged_by_its_own_copies() -> None:
    """A replica stored a new answer below; the copy above is older, and is the one to go."""
    clock = FakeClock()
    above, below = Watched(clock), Watched(clock)
    parts = Parts(above, below)
    old = await parts.put(1, tags=("t",))
    (value,) = await parts.store.get_many([old.key])
    assert value is not None
    await above.put_many([Put(old.key, value, old.expires_at)])
    await parts.purge(tag="t")
    new = await parts.put(1, tags=("t",))
    (value,) = await parts.store.get_many([new.key])
    assert value is not None
    await below.put_many([Put(new.key, value, new.expires_at)])
    await parts.swept()
    assert await parts.held(above) == set()
    assert await parts.held(below) == {1}


async def test_B54_a_tier_that_is_down_does_not_keep_the_sweep_from_the_others() -> None:
    class Down(Watched):
        async def heads(self, keys: object, length: int) -> list[bytes | None]:
            raise StoreUnavailable("redis: the circuit is open")

    clock = FakeClock()
    down, well = Down(clock), Watched(clock)
    parts = Parts(down, well)
    entry = await parts.put(1)
    (value,) = await parts.store.get_many([entry.key])
    for tier in (down, well):
        await tier.put_many([Put(entry.key, value or b"", entry.expires_at)])
    await parts.purge(all=True)
    await parts.swept()
    assert await parts.held(down) == {1}
    assert await parts.held(well) == set()


async def test_B54_only_the_prefix_of_the_purge_is_swept() -> None:
    parts = Parts()
    await parts.put(1)
    (value,) = await parts.store.get_many([key_of(1)])
    other = key_of(1).replace(PREFIX, "other:")
    await parts.store.put_many([Put(other, value or b"", parts.clock.wall() + 60)])
    await parts.purge(all=True)
    await parts.swept()
    assert [key async for key in parts.store.scan("")] == [other]


async def test_B54_what_is_hidden_only_until_the_purges_can_be_read_is_not_swept() -> None:
    class Unreadable(LocalMarkLog):
        async def read(self, known: int) -> Reading | None:
            raise StoreUnavailable("redis: the circuit is open")

    parts = Parts(marks=Unreadable(FakeClock()))
    await parts.put(1, tags=("t",))
    await parts.put(2)
    parts.clock.advance(1)
    await parts.generations.open()
    await parts.purge(tag="t")
    assert await parts.served() == set()
    await until(lambda: parts.tasks.count("purge-sweep") == 0)
    assert await parts.held() == {2}
    await parts.generations.close()


async def test_B54_a_mark_that_is_not_in_force_sweeps_nothing() -> None:
    parts = Parts()
    await parts.put(1)
    parts.sweeps.start(Mark(1, EVERYTHING), PREFIX)
    await parts.swept()
    assert await parts.held() == {1}
