"""What a request costs does not creep up: instructions and calls are counted, time is not taken."""

from collections.abc import Callable

import pytest

from tests.guard.counting import Counts, Tally
from tests.guard.held import MOST, PYTHON, faults, held, measured, moved_libraries


@pytest.fixture(scope="module")
def tallies() -> dict[str, Tally]:
    return measured()


@pytest.fixture
def before() -> dict[str, Counts]:
    found = held()
    if found is None:
        pytest.skip(f"no counts are held for Python {PYTHON}: `make guard` adds them")
    return found


def burden(instructions: int) -> Callable[[], None]:
    """Something that takes about so many instructions."""
    names: dict[str, Callable[[], None]] = {}
    # From no file of the guard, whose own instructions are not counted.
    source = f"def idle():\n    for _ in range({instructions // 3}):\n        pass\n"
    exec(compile(source, "burden", "exec"), names)
    return names["idle"]


def test_no_path_takes_more_than_a_fifth_above_what_is_held(
    tallies: dict[str, Tally], before: dict[str, Counts]
) -> None:
    found = faults(tallies, before)
    moved = moved_libraries() if found else []
    assert not found, "\n".join([*found, *moved, "If it is worth that much: `make guard`."])


def test_the_counts_are_the_same_again(tallies: dict[str, Tally]) -> None:
    for path, taken in measured(["hot", "warm", "miss"]).items():
        before = tallies[path].counts
        assert taken.counts.instructions == pytest.approx(before.instructions, rel=0.01), path
        assert taken.counts.calls == pytest.approx(before.calls, rel=0.01), path


@pytest.mark.parametrize("path", ["hot", "miss"])
@pytest.mark.parametrize(("share", "is_found"), [(0.25, True), (0.1, False)])
def test_a_quarter_more_is_found_and_a_tenth_is_not(
    tallies: dict[str, Tally], path: str, share: float, is_found: bool
) -> None:
    counts = {name: taken.counts for name, taken in tallies.items()}
    slower = measured([path], burden(int(counts[path].instructions * share)))
    assert bool(faults(slower, counts)) is is_found


def test_more_calls_are_found_as_well(tallies: dict[str, Tally]) -> None:
    hot = tallies["hot"]
    fewer = Counts(hot.counts.instructions, int(hot.counts.calls / MOST) - 1)
    (fault,) = faults({"hot": hot}, {"hot": fewer})
    assert fault.startswith("hot:")


def test_what_is_counted_as_hot_takes_the_hot_path(tallies: dict[str, Tally]) -> None:
    assert 3 * tallies["hot"].counts.instructions < tallies["warm"].counts.instructions
