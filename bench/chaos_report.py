"""What an hour of chaos came to: who got an answer, what was left, and the faults."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import orjson

from bench.chaos_course import CLIENTS, IDLE_SECONDS, Course
from bench.chaos_judge import Ended, Fault
from bench.chaos_rules import TOTAL_SECONDS
from bench.chaos_vitals import middle_of
from bench.chaos_weather import Sky
from bench.report import table

# For what tables of connections and counters take; an entry kept for each request would be more.
GROWTH_BYTES = 12 * 1024 * 1024
# Connections to upstreams come and go with the load.
GROWTH_DESCRIPTORS = 100
# Those that were in use at once, of all workers.
MOST_CONNECTIONS = 2 * CLIENTS
_WARM_SHARE, _MIDDLE_SHARE = 0.2, 0.1
_SHOWN = 6
_GOT = (Ended.FRESH, Ended.HIT, Ended.STALE)


def faults(course: Course) -> list[str]:
    """One line for each kind of fault; none: it went well."""
    complaints = course.judge.complaints
    found = [f"{fault}: {n}" for fault, n in Counter(each.fault for each in complaints).items()]
    found += [f"left in the end: {what}" for what in course.rest.left]
    if course.ledger.strangers:
        found.append(
            f"calls with a key that their upstream does not know: {course.ledger.strangers}"
        )
    if course.ledger.restless:
        found.append(f"calls with a key that was to rest: {len(course.ledger.restless)}")
    for who, more, descriptors in growth(course):
        if more > GROWTH_BYTES:
            found.append(f"{who} grew by {more / 1e6:.1f} MB")
        if descriptors > GROWTH_DESCRIPTORS:
            found.append(f"{who} has {descriptors:.0f} more descriptors")
    for name, count in course.rest.connections.items():
        if count > MOST_CONNECTIONS:
            found.append(f"{count} connections to {name} at rest")
    found += [
        f"{count} connections to {name} when none is needed any more"
        for name, count in course.rest.idle_connections.items()
        if count
    ]
    if course.exit_code:
        found.append(f"ended with {course.exit_code}")
    if tracebacks := course.stderr.count("Traceback"):
        found.append(f"tracebacks on the standard error: {tracebacks}")
    return found + [f"nothing tried of: {what}" for what in _untried(course)]


def growth(course: Course) -> Iterator[tuple[str, float, float]]:
    """Of each worker that served for long: bytes and descriptors more at its end than early on."""
    whole = course.ended - course.began
    for pid, samples in course.vitals.samples.items():
        first, last = samples[0].moment, min(samples[-1].moment, course.ended)
        lived = last - first
        if lived < whole / 4:
            continue
        early = first + _WARM_SHARE * lived
        before = middle_of(samples, early, early + _MIDDLE_SHARE * lived)
        after = middle_of(samples, last - _MIDDLE_SHARE * lived, last)
        if before is not None and after is not None:
            who = "the worker that lived through it" if pid == course.survivor else f"worker {pid}"
            yield who, after[0] - before[0], after[1] - before[1]


def report(course: Course) -> str:
    """The whole report, as Markdown."""
    found = faults(course)
    parts = [
        _availability(course),
        _windows(course),
        _load(course),
        _memory(course),
        _complaints(course),
        "**Right.**" if not found else "**Wrong:**\n" + "\n".join(f"- {line}" for line in found),
    ]
    return "\n\n".join(part for part in parts if part)


def _availability(course: Course) -> str:
    """By kind and by sky: how many asked, and the share that got an answer."""
    accounts = course.judge.accounts
    rows = []
    for kind in [*sorted({kind for kind, _, _ in accounts}), "all"]:
        mine = {
            (sky, ended): sum(
                n
                for (each, above, end), n in accounts.items()
                if kind in {each, "all"} and above is sky and end is ended
            )
            for sky in Sky
            for ended in Ended
        }
        counts = [sum(mine[sky, ended] for sky in Sky) for ended in Ended]
        rows.append([kind, *(f"{n:,}" for n in counts), *(_share(mine, sky) for sky in Sky)])
    head = ["kind", *Ended, *(f"answered, {sky}" for sky in Sky)]
    codes = ", ".join(f"{n:,} x {what}" for what, n in course.judge.statuses.most_common())
    return table(head, rows) + (f"\n\nErrors by status and code: {codes}." if codes else "")


def _share(mine: dict[tuple[Sky, Ended], int], sky: Sky) -> str:
    stayed = sum(
        n for (above, ended), n in mine.items() if above is sky and ended is not Ended.LEFT
    )
    if not stayed:
        return "-"
    return f"{100 * sum(mine[sky, ended] for ended in _GOT) / stayed:.2f} % of {stayed:,}"


def _windows(course: Course) -> str:
    rows: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0])
    for window in course.weather.windows:
        row = rows[window.trouble]
        row[0] += 1
        row[1] += window.ended - window.began
        row[2] += window.calls
    return table(
        ["what broke", "times", "seconds", "upstream calls"],
        [[what, f"{n:.0f}", f"{s:,.0f}", f"{calls:,.0f}"] for what, (n, s, calls) in rows.items()],
    )


def _load(course: Course) -> str:
    seconds = course.ended - course.began
    calls = course.ledger.total
    hits = sum(n for (_, _, ended), n in course.judge.accounts.items() if ended is Ended.HIT)
    return (
        f"{course.requests:,} requests of {CLIENTS} clients in {seconds:,.0f} s, the last"
        f" {course.ended - course.calm_from:.0f} of them calm. {calls:,} upstream calls:"
        f" {calls / course.requests:.2f} for a request, {calls / (course.requests - hits):.2f} for"
        f" one that was no hit. The slowest answer took {course.judge.slowest:.2f} s, where"
        f" `total_seconds` is {TOTAL_SECONDS:.0f}. CPU: {100 * course.cpu['worker']:.0f} % of a"
        f" core for the worker that lived through it, {100 * course.cpu['bench']:.0f} % for clients"
        f" and upstreams. The machine let them wait for {course.vitals.latest:.2f} s at most."
    )


def _memory(course: Course) -> str:
    whole = course.ended - course.began
    lines = []
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        samples = course.vitals.samples.get(course.survivor, [])
        moment = course.began + share * whole
        middle = middle_of(samples, moment - whole / 20, moment)
        if middle is not None:
            lines.append(f"{middle[0] / 1e6:.1f} MB and {middle[1]:.0f} at {100 * share:.0f} %")
    rest = course.rest
    at_rest = ", ".join(f"{name} {n}" for name, n in rest.connections.items())
    idle = ", ".join(f"{name} {n}" for name, n in rest.idle_connections.items())
    return (
        f"Resident memory and open descriptors of the worker that lived through it:"
        f" {', '.join(lines)}. Others were killed {course.kills} times.\n"
        f"Connections to upstreams when the last answer was there: {at_rest}"
        + (f"; {IDLE_SECONDS:.0f} s later: {idle}." if idle else ".")
    )


def _complaints(course: Course) -> str:
    """The first ones of each kind, with what is needed to look for their cause."""
    lines = []
    for fault in Fault:
        mine = [each for each in course.judge.complaints if each.fault is fault]
        if mine:
            lines.append(f"{fault} ({len(mine)}): {dict(Counter(e.result.ask.kind for e in mine))}")
        for each in mine[:_SHOWN]:
            lines += each.told(course.began)
    for call, rest in course.ledger.restless[:_SHOWN]:
        lines.append(
            f"- call {call.number} at {call.began - course.began:.2f} s with {call.key}, told at"
            f" {rest.said - course.began:.2f} s to rest until {rest.until - course.began:.2f} s"
        )
    return "\n".join(lines)


def dump(course: Course) -> bytes:
    """All windows and complaints, as lines of JSON; times are seconds since the start."""
    windows = [
        {
            "what": "window",
            "trouble": window.trouble,
            "place": window.place,
            "began": round(window.began - course.began, 3),
            "ended": round(window.ended - course.began, 3),
            "until": round(window.until - course.began, 3),
            "calls": window.calls,
        }
        for window in course.weather.windows
    ]
    complaints: list[dict[str, Any]] = [
        {
            "what": "complaint",
            "fault": each.fault,
            "why": each.why,
            "body": each.result.ask.body,
            "told": list(each.told(course.began)),
        }
        for each in course.judge.complaints
    ]
    return b"".join(
        orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in [*windows, *complaints]
    )


def _untried(course: Course) -> list[str]:
    """What an hour that proves something must have had."""
    endings = Counter[Ended]()
    skies = Counter[Sky]()
    for (_, sky, ended), n in course.judge.accounts.items():
        endings[ended] += n
        skies[sky] += n
    had = {str(ended): endings[ended] for ended in Ended} | {str(sky): skies[sky] for sky in Sky}
    if course.plan.short:  # there is no time for all of it
        had = {what: had[what] for what in (str(Ended.HIT), str(Sky.CLOUDED))}
    return [what for what, count in had.items() if not count]
