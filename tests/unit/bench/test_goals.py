"""Goals are computed from the turns: by the median, ratios within one turn, nothing made up."""

import pytest

from bench.goals import GOALS, Figures, Goal, Measure, rows
from bench.hit_kinds import KINDS


def figures(rate: float = 1.0, cpu_us: float = 1.0, p99_us: float = 1.0) -> Figures:
    return Figures(rate=rate, cpu_us=cpu_us, p50_us=1.0, p99_us=p99_us)


def test_a_ratio_is_one_of_the_same_turn() -> None:
    goal = Goal("hot", "hot", Measure.RATE, 2.0, "nginx", "nginx")
    turns = {
        "hot": [figures(rate=300), figures(rate=40), figures(rate=500)],
        "nginx": [figures(rate=100), figures(rate=20), figures(rate=500)],
    }
    assert goal.figures(turns) == [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("measure", "came", "reached"),
    [
        (Measure.RATE, [1.9, 2.0, 9.0], True),
        (Measure.RATE, [1.9, 1.9, 9.0], False),
        (Measure.CPU, [1.0, 2.0, 9.0], True),
        (Measure.CPU, [1.0, 2.1, 9.0], False),
    ],
)
def test_rates_are_to_be_at_least_the_bound_and_all_else_at_most(
    measure: Measure, came: list[float], reached: bool
) -> None:
    assert Goal("path", "side", measure, 2.0).is_reached(came) is reached


def test_what_was_not_measured_has_no_row() -> None:
    assert rows({"hot": [], "nginx": [figures()]}, "bench_hit") == []
    made = rows({"hot": [figures(cpu_us=14.0)]}, "bench_hit")
    assert made == [["hot hit", "CPU ≤ 16 µs", "14.0 (14.0 to 14.0)", "reached", "`bench_hit`"]]


def test_a_missed_goal_stands_out() -> None:
    (row,) = rows({"warm": [figures(cpu_us=130.0)]}, "bench_hit")
    assert row[3] == "**missed**"


def test_goals_are_about_sides_that_exist() -> None:
    named = {name for goal in GOALS for name in (goal.side, goal.against) if name is not None}
    assert named <= set(KINDS)
    assert len({(goal.path, goal.wanted) for goal in GOALS}) == len(GOALS)
