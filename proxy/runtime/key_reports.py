"""What the admin is told of upstream keys: by one worker, or by all that serve."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from proxy.upstream.allowance import LimitStatus
from proxy.upstream.pooled_key import KeyState, KeyStatus

Report: TypeAlias = dict[str, Any]
"""JSON: `upstreams`, each with a list of its keys, and `workers`, how many told."""

_SUMS: Final = ("in_flight", "uses", "successes", "failures")
_FROM_BEST: Final = tuple(state.value for state in KeyState)


def key_report(states: Mapping[str, Sequence[KeyStatus]], wall: float) -> Report:
    """Every key of every upstream as this worker knows it; `wall` is the time of `states`."""
    return {
        "workers": 1,
        "upstreams": {
            name: [_reported(status, wall) for status in statuses]
            for name, statuses in states.items()
        },
    }


def merged_reports(reports: Mapping[int, Report]) -> Report:
    """What workers told, by their numbers, as one: use is summed, headroom the least.

    The state of a key is the worst that any has it in; `workers` of the key then says in which
    state each has it, where they differ.
    """
    keys: dict[str, dict[str, dict[int, Report]]] = {}
    for number, report in reports.items():
        for upstream, told in report["upstreams"].items():
            for key in told:
                keys.setdefault(upstream, {}).setdefault(key["key"], {})[number] = key
    return {
        "workers": len(reports),
        "upstreams": {
            upstream: [_merged(told) for told in by_key.values()]
            for upstream, by_key in keys.items()
        },
    }


def _merged(told: Mapping[int, Report]) -> Report:
    worst = max(told.values(), key=lambda key: (_FROM_BEST.index(key["state"]), key["until"] or ""))
    merged = worst | {name: sum(key[name] for key in told.values()) for name in _SUMS}
    known = [key["headroom"] for key in told.values() if key["headroom"] is not None]
    merged["headroom"] = min(known, default=None)
    merged["limits"] = _least(limit for key in told.values() for limit in key["limits"])
    states = {str(number): key["state"] for number, key in told.items()}
    if len(set(states.values())) > 1:
        merged["workers"] = states
    return merged


def _least(limits: Iterable[Report]) -> list[Report]:
    """Of each limit what the worker says that leaves least of it."""
    least: dict[tuple[str, str, str | None], Report] = {}
    for limit in limits:
        name = (limit["kind"], limit["source"], limit["model"])
        least[name] = min(least.get(name, limit), limit, key=lambda each: int(each["left"]))
    return list(least.values())


def _reported(status: KeyStatus, wall: float) -> Report:
    since, rests = status.since_seconds, status.state is not KeyState.AVAILABLE
    return {
        "key": status.fingerprint,
        "state": status.state.value,
        "reason": status.reason or None,
        "since": None if since is None else _moment(wall - since),
        "until": _moment(wall + status.seconds) if rests else None,
        "in_flight": status.in_flight,
        "uses": status.uses,
        "successes": status.successes,
        "failures": status.failures,
        "headroom": None if status.headroom is None else round(status.headroom, 4),
        "limits": [_limit(limit) for limit in status.limits],
    }


def _limit(limit: LimitStatus) -> Report:
    return {
        "kind": limit.kind,
        "source": "settings" if limit.model is None else "answers",
        "model": limit.model or None,
        "limit": limit.limit,
        "left": limit.left,
    }


def _moment(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
