"""What a soak came to: a report, and the faults that make it a failure."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from bench.checked import Came, Result
from bench.report import table
from bench.soak_accounts import cut_short, digests_of, unexplained, went_on
from bench.soak_course import Course
from bench.soak_judge import Complaint, Fault
from bench.soak_purges import Sent
from bench.soak_rules import MODELS, SURVIVOR, VICTIM
from bench.soak_upstream import Ending, UpstreamCall

# For what the tables of connections, tags and counters take; an entry kept for each request would
# be many times that.
GROWTH_BYTES = 12 * 1024 * 1024
_SHOWN, _SHOWN_OF_MODEL = 8, 4


def faults(course: Course) -> list[str]:
    """One line for each kind of fault; none: the soak went well."""
    seen, judge = course.seen, course.judge
    found = [
        f"{fault}: {count}"
        for fault, count in Counter(each.fault for each in judge.complaints).items()
    ]
    found += seen.troubles
    if late := [crowd for crowd in seen.crowds if crowd.calls > crowd.most]:
        worst = max(crowd.calls for crowd in late)
        found.append(f"crowds with more than one upstream call: {len(late)} (up to {worst})")
    if without := _unexplained(course):
        found.append(f"upstream calls that no request explains: {len(without)}")
    deaths = [window for window in judge.windows if window.proxy == VICTIM]
    cut = [
        call
        for call in cut_short(course.upstream.calls, seen.results)
        if not any(death.overlaps(call.ended, call.ended) for death in deaths)
    ]
    if cut:
        found.append(f"upstream calls broken off that were to be finished: {len(cut)}")
    if late_ends := went_on(course.upstream.calls, seen.results):
        found.append(f"upstream calls that went on for nobody: {len(late_ends)}")
    found += [
        f"{name} counts {told} requests of {least} to {most}"
        for name, least, most, told in _told(course)
        if not least <= told <= most
    ]
    for counted in seen.counted:
        if counted.proxys != counted.upstream:
            found.append(
                f"{counted.proxy} counts {counted.proxys} upstream calls of {counted.upstream}"
            )
    if refused := [call for call in course.upstream.calls if call.ending is Ending.REFUSED]:
        found.append(f"upstream requests that should not be sent: {len(refused)}")
    found += [
        f"purges that failed: {count} x {why}" for why, count in course.purges.refused.items()
    ]
    if (grown := growth(course)) > GROWTH_BYTES:
        found.append(f"resident memory grew by {grown / 1e6:.1f} MB")
    found += [f"{name} ended with {code}" for name, code in seen.exit_codes.items() if code]
    return found + [f"nothing tried of: {what}" for what in _untried(course)]


def _told(course: Course) -> Iterator[tuple[str, int, int, int]]:
    """Of each proxy that was not killed: requests answered, sent in all, and counted by it.

    A client that leaves at once may never have sent its request.
    """
    mine = [each for each in course.seen.results if each.ask.proxy == SURVIVOR]
    scrape = course.seen.final[SURVIVOR]
    told = sum(
        scrape.total("magic_proxy_requests_total", endpoint=endpoint)
        for endpoint in ("chat", "embeddings")
    )
    stayed = sum(each.came is not Came.LEFT for each in mine)
    yield SURVIVOR, stayed, len(mine), int(told)


def _unexplained(course: Course) -> list[UpstreamCall]:
    losses = [window for window in course.judge.windows if window.loses_leaders]
    return unexplained(course.upstream.calls, course.seen.results, losses)


def growth(course: Course) -> int:
    """Bytes that the proxy that lived through it all holds more at the end than early on."""
    resident = course.seen.resident
    return resident.get("end", 0) - resident.get("start", 0)


def report(course: Course) -> str:
    """The whole report, as Markdown."""
    found = faults(course)
    parts = [
        _requests(course),
        _windows(course),
        _upstream(course),
        _memory(course),
        _complaints(course),
        "**Right.**" if not found else "**Wrong:**\n" + "\n".join(f"- {line}" for line in found),
    ]
    return "\n\n".join(part for part in parts if part)


def dump(course: Course) -> bytes:
    """All requests and upstream calls in the order of their beginnings, as lines of JSON."""
    told: list[Result | UpstreamCall | Sent] = list(course.seen.results)
    told += course.upstream.calls
    told += course.purges.sent
    option = orjson.OPT_SERIALIZE_DATACLASS | orjson.OPT_APPEND_NEWLINE
    return b"".join(
        orjson.dumps({"what": type(each).__name__, **_shown(each)}, option=option)
        for each in sorted(told, key=lambda each: each.began)
    )


def _shown(each: Result | UpstreamCall | Sent) -> dict[str, Any]:
    shown: dict[str, Any] = asdict(each)
    if isinstance(each, Result):
        shown["digests"] = digests_of(each)
    return shown


def _requests(course: Course) -> str:
    by_kind: defaultdict[str, list[Result]] = defaultdict(list)
    for result in course.seen.results:
        by_kind[result.ask.kind].append(result)
    outcomes = ["HIT", "STALE", "MISS", "BYPASS"]
    rows = []
    for kind, results in sorted(by_kind.items()):
        whole = [result for result in results if result.came is Came.WHOLE]
        waits = sorted(1000 * (result.ended - result.began) for result in whole) or [0.0]
        rows.append(
            [
                kind,
                f"{len(results):,}",
                *(f"{sum(each.x_cache == outcome for each in whole):,}" for outcome in outcomes),
                f"{sum(each.collapsed for each in whole):,}",
                f"{sum(each.came is Came.LEFT for each in results):,}",
                f"{len(whole):,}",
                f"{sum(each.came not in {Came.LEFT, Came.WHOLE} for each in results):,}",
                f"{statistics.median(waits):,.0f}",
                f"{waits[int(len(waits) * 0.99)]:,.0f}",
            ]
        )
    head = [
        "kind",
        "requests",
        *outcomes,
        "collapsed",
        "left",
        "whole",
        "failed",
        "p50 ms",
        "p99 ms",
    ]
    return table(head, rows)


def _windows(course: Course) -> str:
    purges = course.purges.sent
    rows: dict[str, list[float]] = {}
    for window in course.judge.windows:
        row = rows.setdefault(window.name, [0, 0.0, 0])
        row[0] += 1
        row[1] += window.ended - window.began
        row[2] += window.excused
    text = table(
        ["announced", "times", "seconds", "failures excused"],
        [
            [name, f"{n:.0f}", f"{s:.1f}", f"{excused:.0f}"]
            for name, (n, s, excused) in rows.items()
        ],
    )
    good = sorted(1000 * sent.seconds for sent in purges if sent.status == 200)
    if good:
        text += (
            f"\n\n{len(purges)} purges, {len(good)} answered with 200, in"
            f" {statistics.median(good):.1f} ms (median), {good[-1]:.1f} ms at most."
        )
    return text


def _upstream(course: Course) -> str:
    seen, calls = course.seen, course.upstream.calls
    endings = Counter(call.ending for call in calls)
    crowds = seen.crowds
    ended = ", ".join(f"{count:,} {ending}" for ending, count in endings.items())
    counted = ", ".join(
        f"{each.proxy} {each.proxys:,} of {each.upstream:,}" for each in seen.counted
    )
    return (
        f"{len(calls):,} upstream calls ({ended}); without a request to explain them:"
        f" {len(_unexplained(course))}.\n"
        f"{len(crowds)} crowds of {sum(crowd.size for crowd in crowds):,} requests:"
        f" {sum(crowd.calls == 1 for crowd in crowds)} with one upstream call,"
        f" {sum(crowd.most > 1 for crowd in crowds)} of all in windows or beside purges.\n"
        f"Counted by the proxies of what the upstream counted: {counted};"
        f" {seen.uncounted_calls} between the last look at the killed one and its end."
    )


def _memory(course: Course) -> str:
    resident = course.seen.resident
    if "start" not in resident or "end" not in resident:
        return ""
    return (
        f"Resident memory of the proxy that lived through it: {resident['start'] / 1e6:.1f} MB at"
        f" 20 %, {resident['end'] / 1e6:.1f} MB at the end."
    )


def _complaints(course: Course) -> str:
    """The first ones of each kind, with what is needed to look for their cause."""
    began = min((result.began for result in course.seen.results), default=0.0)
    lines = []
    for fault in Fault:
        mine = [each for each in course.judge.complaints if each.fault is fault]
        models = Counter(each.result.ask.model for each in mine)
        if mine:
            lines.append(f"{fault} ({len(mine)}): {dict(models)}")
        shown = [each for model in models for each in _of_model(mine, model)[:_SHOWN_OF_MODEL]]
        for each in shown:
            result, ask = each.result, each.result.ask
            lines.append(
                f"- {result.began - began:.2f} s, {ask.proxy}, {ask.kind}, {ask.model},"
                f" {result.cache_status or result.status}: {each.why}"
            )
    crowds = [crowd for crowd in course.seen.crowds if crowd.calls > crowd.most]
    lines += [
        f"- crowd at {crowd.began:.2f} s, {crowd.model}: {crowd.size} requests, {crowd.calls} calls"
        for crowd in crowds[:_SHOWN]
    ]
    without = _unexplained(course)
    lines += [
        f"- call {call.number} at {call.began - began:.2f} s of {call.proxy}, {call.ending},"
        f" {len(call.digests)} inputs, {call.digests[0]}"
        for call in sorted(without, key=lambda call: call.ending is Ending.REFUSED)[:_SHOWN]
    ]
    return "\n".join(lines)


def _of_model(complaints: Sequence[Complaint], model: str) -> list[Complaint]:
    return [each for each in complaints if each.result.ask.model == model]


def _untried(course: Course) -> list[str]:
    """What a soak that proves something must have had."""
    whole = [each for each in course.seen.results if each.came is Came.WHOLE]
    outcomes = Counter(each.x_cache for each in whole)
    had = {
        "hits": outcomes["HIT"],
        "stale answers": outcomes["STALE"],
        "collapsed answers": sum(each.collapsed for each in whole),
        "purges": sum(sent.status == 200 for sent in course.purges.sent),
        "purges by key": sum(sent.order.target[0] == "key" for sent in course.purges.sent),
        "clients that left": sum(each.came is Came.LEFT for each in course.seen.results),
        "failures in windows": sum(window.excused for window in course.judge.windows),
        "undisturbed crowds": sum(crowd.most == 1 for crowd in course.seen.crowds),
    } | {f"model {name}": sum(each.ask.model == name for each in whole) for name in MODELS}
    if not course.plan.stops_redis:  # there is no time for all of it
        had = {what: had[what] for what in ("hits", "purges", "collapsed answers")}
    return [what for what, count in had.items() if not count]
