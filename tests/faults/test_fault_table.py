"""Over HTTP: each fault of an upstream, for each kind of request and each setup (`table.py`)."""

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest

from tests.faults.asking import Got
from tests.faults.columns import Column, Seen
from tests.faults.rows import FAULTS
from tests.faults.settings import Ground, ground
from tests.faults.table import CELLS, EXCEPTIONS, Cell, Expected, Setup, derived, expected
from tests.integration.structured_fields import Token, parse_list

# What an upstream says to whom it turns away, all of which has to reach the client (B65).
_TOLD = ("retry-after", "x-ratelimit-", "anthropic-ratelimit-", "x-should-retry", "location")


class Columns:
    """Runs a column when the first of its cells is asked for."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._seen: dict[Cell, Seen] = {}

    def __getitem__(self, cell: Cell) -> Seen:
        if cell not in self._seen:
            column = replace(cell, fault=FAULTS[0])
            same = [each for each in CELLS if replace(each, fault=FAULTS[0]) == column]
            self._seen |= Column(same, self._ground).run()
        return self._seen[cell]


@pytest.fixture(scope="module")
def columns() -> Iterator[Columns]:
    with ground() as place:
        yield Columns(place)


def cells(setup: Setup, transport: str = "aiohttp") -> pytest.MarkDecorator:
    """Those of one setup, column by column."""
    chosen = [cell for cell in CELLS if (cell.setup, cell.transport) == (setup, transport)]
    return pytest.mark.parametrize("cell", chosen, ids=str)


@cells(Setup.OWN)
def test_B65_B14_B21_a_fault_meets_a_client_s_own_key(cell: Cell, columns: Columns) -> None:
    check(columns[cell])


@cells(Setup.ONE)
def test_B62_B64_a_fault_meets_the_only_key(cell: Cell, columns: Columns) -> None:
    check(columns[cell])


@cells(Setup.TWO)
def test_B62_B63_a_fault_meets_the_first_of_two_keys(cell: Cell, columns: Columns) -> None:
    check(columns[cell])


@cells(Setup.CHAIN)
def test_B63_B67_a_fault_meets_the_first_of_a_chain(cell: Cell, columns: Columns) -> None:
    check(columns[cell])


@cells(Setup.STALE)
def test_B15_a_fault_meets_a_stale_answer(cell: Cell, columns: Columns) -> None:
    check(columns[cell])


@cells(Setup.ONE, "httpx")
def test_B62_B68_a_fault_meets_the_other_transport(cell: Cell, columns: Columns) -> None:
    check(columns[cell])


def check(seen: Seen) -> None:
    """A cell is as the table says, and as every cell has to be."""
    assert seen.told == expected(seen.cell)
    assert seen.leaks == []
    for step, got in seen.answers.items():
        _check_answer(seen, step, got)


def _check_answer(seen: Seen, step: str, got: Got) -> None:
    if seen.cell.kind.is_cached:
        item = parse_list(got["cache-status"])[-1]
        assert item.value == Token("magic-proxy")
        assert got["x-cache"] in {"HIT", "MISS", "STALE", "ERROR"}
    if step == "fault" and seen.told.client == "as told":
        told = [pair for pair in seen.calls[step][-1].wire.headers if pair[0].startswith(_TOLD)]
        assert [pair for pair in got.headers if pair[0].startswith(_TOLD)] == told
    if got["retry-after"] and got["x-cache"] == "ERROR":
        seconds = float(seen.key.split()[1])
        assert seconds - 60 < int(got["retry-after"]) <= seconds + 1, "the soonest time"


def test_the_table_is_complete() -> None:
    """Every fault, for every kind of request that it can be an answer to, in every setup."""
    met = [
        (each.fault.name, each.kind, each.setup) for each in CELLS if each.transport == "aiohttp"
    ]
    wanted = [
        (fault.name, kind, setup) for fault in FAULTS for kind in fault.kinds for setup in Setup
    ]
    assert sorted(met) == sorted(wanted)
    assert len(set(met)) == len(met)
    tests = [each for name, each in globals().items() if name.startswith("test_B")]
    assert [cell for test in tests for cell in test.pytestmark[0].args[1]] == list(CELLS)
    statuses = {fault.name.partition("-")[0] for fault in FAULTS}
    for status in (400, *range(401, 405), 408, 409, 413, 422, 429, *range(500, 505), 529):
        assert str(status) in statuses


def test_each_exception_is_one() -> None:
    names = {field.name for field in fields(Expected)}
    for each in EXCEPTIONS:
        holds = [cell for cell in CELLS if each.holds_for(cell)]
        assert {cell.fault.name for cell in holds} == each.faults
        assert {cell.kind for cell in holds} == each.kinds
        assert {cell.setup for cell in holds} >= each.setups
        assert each.seen.keys() <= names
        assert all(expected(cell) != derived(cell) for cell in holds)
