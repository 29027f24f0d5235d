"""What several workers know of upstream keys, told as one."""

from typing import Any

from proxy.runtime.key_reports import Report, key_report, merged_reports
from proxy.upstream.allowance import LimitStatus
from proxy.upstream.pooled_key import KeyState, KeyStatus

NOW = 1_800_000_000.0
COOLING, RETIRED = KeyState.COOLING, KeyState.RETIRED


def told(name: str = "a", state: KeyState = KeyState.AVAILABLE, **more: Any) -> Report:
    return key_report({"up": [KeyStatus(name, state, 1, **more)]}, NOW)


def limit(left: int, model: str | None = None) -> LimitStatus:
    return LimitStatus("requests", 10, left, model)


def one(report: Report) -> Any:
    (key,) = report["upstreams"]["up"]
    return key


def test_use_is_summed_and_of_headroom_and_limits_the_least_counts() -> None:
    reports = {
        1: told(uses=3, successes=2, failures=1, headroom=0.5, limits=(limit(5),)),
        2: told(uses=4, successes=4, headroom=0.25, limits=(limit(7), limit(1, "m"))),
        4: told(),
    }
    merged = merged_reports(reports)
    assert merged["workers"] == 3
    key = one(merged)
    assert (key["in_flight"], key["uses"], key["successes"], key["failures"]) == (3, 7, 6, 1)
    assert key["headroom"] == 0.25
    assert [(each["model"], each["left"]) for each in key["limits"]] == [(None, 5), ("m", 1)]
    assert key["state"] == "available"
    assert "workers" not in key, "it is the same in all"


def test_where_states_differ_the_worst_is_told_and_who_has_it_in_which() -> None:
    reports = {
        1: told(),
        2: told(state=COOLING, seconds=5.0, reason="short"),
        3: told(state=COOLING, seconds=60.0, reason="long"),
    }
    key = one(merged_reports(reports))
    assert (key["state"], key["reason"]) == ("cooling", "long")
    assert key["until"] == "2027-01-15T08:01:00Z"
    assert key["workers"] == {"1": "available", "2": "cooling", "3": "cooling"}
    key = one(merged_reports(reports | {4: told(state=RETIRED, reason="status 401")}))
    assert (key["state"], key["reason"]) == ("retired", "status 401")


def test_a_reload_may_have_reached_only_some() -> None:
    merged = merged_reports({1: told("a"), 2: told("b"), 3: key_report({"new": []}, NOW)})
    assert [key["key"] for key in merged["upstreams"]["up"]] == ["a", "b"]
    assert merged_reports({1: told(uses=2)}) == told(uses=2)
