"""What a process holds, over a table that hangs or refuses."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from proxy.clock import SystemClock
from proxy.coalesce import held
from proxy.coalesce.base import FlightEnd
from proxy.coalesce.held import HeldLease, HeldLeases, Kept, Leaving
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup
from tests.waiting import until

pytestmark = pytest.mark.anyio


class Table:
    """Notes what it is asked; a test says how it answers."""

    def __init__(self) -> None:
        self.renewed: list[list[str]] = []
        self.released: list[list[tuple[str, FlightEnd]]] = []
        self.kept = Kept.HELD
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def renew(self, leases: Sequence[HeldLease]) -> Sequence[int]:
        self.renewed.append([lease.key for lease in leases])
        await self._answer()
        return [self.kept] * len(leases)

    async def release(self, leaving: Sequence[Leaving]) -> None:
        self.released.append([(lease.key, end) for lease, end in leaving])
        await self._answer()

    async def _answer(self) -> None:
        await self.gate.wait()
        if self.is_away:
            raise StoreUnavailable("away")


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup()
    yield group
    await group.cancel()


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def leases(table: Table, tasks: TaskGroup) -> HeldLeases:
    return HeldLeases(table, SystemClock(), tasks, lease_seconds=0.03)


async def test_what_is_released_in_one_turn_goes_together_and_in_order(
    table: Table, leases: HeldLeases
) -> None:
    made = [leases.hold(f"k{i}", i) for i in range(600)]
    await asyncio.gather(*(lease.release(FlightEnd.STORED) for lease in made))
    assert [len(batch) for batch in table.released] == [500, 100]
    assert [key for batch in table.released for key, _ in batch] == [f"k{i}" for i in range(600)]


async def test_what_is_released_while_a_renewal_is_under_way_is_not_kept(
    table: Table, leases: HeldLeases, tasks: TaskGroup
) -> None:
    lease = leases.hold("k", 1)
    table.gate.clear()
    await until(lambda: bool(table.renewed))
    releasing = asyncio.ensure_future(lease.release(FlightEnd.STORED))
    await until(lambda: bool(table.released))
    table.gate.set()
    await releasing
    await until(lambda: len(tasks) == 0)
    assert leases.find("k", 1) is None


async def test_B50_a_renewal_that_fails_loses_nothing_and_is_tried_again(
    table: Table, leases: HeldLeases
) -> None:
    lease = leases.hold("k", 1)
    table.is_away = True
    await until(lambda: len(table.renewed) >= 3)
    assert not lease.lost
    table.is_away = False
    table.kept = Kept.LOST
    await until(lambda: lease.lost)


async def test_a_lease_that_is_lost_is_neither_renewed_nor_released(
    table: Table, leases: HeldLeases, tasks: TaskGroup
) -> None:
    table.kept = Kept.LOST
    lease = leases.hold("k", 1)
    await until(lambda: lease.lost)
    await lease.release(FlightEnd.STORED)
    assert table.released == []
    await until(lambda: len(tasks) == 0)


async def test_a_callback_that_fails_keeps_no_other_lease_from_being_renewed(
    table: Table, leases: HeldLeases
) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, found: failures.append(found))

    def fail() -> None:
        raise KeyError("k")

    table.kept = Kept.WANTED
    for i in range(3):
        leases.hold(f"k{i}", i).when_wanted(fail)
    await until(lambda: len(table.renewed) >= 3)
    assert len(failures) == 3
    assert table.renewed[-1] == ["k0", "k1", "k2"]


async def test_B50_a_table_that_hangs_does_not_hold_up_the_end(
    table: Table, leases: HeldLeases, tasks: TaskGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_CLOSING_SECONDS", 0.05)
    made = [leases.hold(f"k{i}", i) for i in range(5)]
    table.gate.clear()
    waiting = asyncio.ensure_future(made[0].release(FlightEnd.STORED))
    await asyncio.sleep(0)
    await leases.release_all()
    await tasks.cancel()
    await waiting
    await made[1].release(FlightEnd.STORED)
