"""The soak finds what it looks for: each kind of fault, made up, is told; what is right is not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from bench.checked import Ask, Came, Result
from bench.soak_accounts import unexplained
from bench.soak_judge import Fault, Floor, Judge, Window
from bench.soak_upstream import Ending, UpstreamCall
from bench.stamped import (
    Said,
    Stamp,
    Wrong,
    as_base64,
    chat_digest,
    chat_usage,
    chat_words,
    check_chat,
    check_embeddings,
    item_digest,
    token_count,
    vector,
)

BODY = {
    "model": "plain",
    "messages": [{"role": "user", "content": "Hello"}],
    "temperature": 0.0,
}
DIGEST = chat_digest(BODY)


def call(number: int = 1, **changes: Any) -> UpstreamCall:
    made = UpstreamCall(number, 1, "stays", (DIGEST,), 100.0, 100.2, Ending.WHOLE)
    return replace(made, **changes)


def result(body: Mapping[str, Any] = BODY, **changes: Any) -> Result:
    headers = {"x-project": "apollo", **changes.pop("headers", {})}
    ask = Ask("chat", changes.pop("proxy", "stays"), body, headers)
    made = Result(ask, began=101.0, ended=101.1, came=Came.WHOLE, status=200, x_cache="HIT")
    made.stamps = (Stamp(DIGEST, 1, 1, 100.0),)
    return replace(made, **changes)


def faults(judge: Judge, *results: Result) -> list[Fault]:
    for each in results:
        judge.judge(each)
    return [complaint.fault for complaint in judge.complaints]


# ---- content ----


def said(stamp: Stamp, **changes: Any) -> Said:
    return replace(Said("".join(chat_words(stamp)), "stop", chat_usage(BODY, stamp)), **changes)


def test_the_answer_of_the_upstream_is_right() -> None:
    stamp = Stamp(DIGEST, 7, 3, 12.345)
    assert check_chat(BODY, said(stamp), usage_wanted=True) == stamp


@pytest.mark.parametrize(
    "wrong",
    [
        said(Stamp("0" * 16, 7, 3, 12.345)),
        said(
            Stamp(DIGEST, 7, 3, 12.345), text="".join(chat_words(Stamp(DIGEST, 7, 3, 12.345))[:-1])
        ),
        said(Stamp(DIGEST, 7, 3, 12.345), finish_reason=None),
        said(Stamp(DIGEST, 7, 3, 12.345), usage=None),
        said(Stamp(DIGEST, 7, 3, 12.345), usage={"total_tokens": 1}),
        Said("", "stop", None),
    ],
    ids=["another's", "shorter", "unfinished", "no usage", "wrong usage", "empty"],
)
def test_any_other_answer_is_wrong(wrong: Said) -> None:
    with pytest.raises(Wrong):
        check_chat(BODY, wrong, usage_wanted=True)


def embeddings(items: list[str], *, packed: bool = False) -> dict[str, Any]:
    encode = as_base64 if packed else list
    stamps = [Stamp(item_digest("embedder", item), 7, 3, 12.345) for item in items]
    tokens = sum(token_count(item) for item in items)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": at, "embedding": encode(vector(stamp))}
            for at, stamp in enumerate(stamps)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


@pytest.mark.parametrize("packed", [False, True])
def test_each_vector_is_that_of_its_input(packed: bool) -> None:
    body = {"model": "embedder", "input": ["a", "b", "a"]}
    if packed:
        body["encoding_format"] = "base64"
    stamps = check_embeddings(body, embeddings(["a", "b", "a"], packed=packed))
    assert [stamp.version for stamp in stamps] == [7, 7, 7]
    for other in (["b", "a", "a"], ["a", "b"], ["a", "b", "c"]):
        with pytest.raises(Wrong):
            check_embeddings(body, embeddings(other, packed=packed))
    with pytest.raises(Wrong):
        check_embeddings(body, embeddings(["a", "b", "a"], packed=not packed))


# ---- purges ----


@pytest.mark.parametrize("target", [("all", ""), ("model", "plain"), ("tag", "project:apollo")])
def test_an_answer_older_than_a_purge_is_told(target: tuple[str, str]) -> None:
    judge = Judge([call()])
    judge.purged(Floor(target, 2, since=100.9, proxy="stays"))
    assert faults(judge, result()) == [Fault.PURGED]


@pytest.mark.parametrize(
    "floor",
    [
        Floor(("model", "other"), 2, since=100.9, proxy="stays"),
        Floor(("all", ""), 1, since=100.9, proxy="stays"),
        Floor(("all", ""), 2, since=101.05, proxy="stays"),
        Floor(("all", ""), 2, since=100.9, proxy="killed"),
    ],
    ids=["other model", "same version", "after the request began", "other proxy"],
)
def test_a_purge_of_something_else_does_not_matter(floor: Floor) -> None:
    judge = Judge([call()])
    judge.purged(floor)
    assert faults(judge, result()) == []


def test_a_soft_purge_lets_through_what_is_told_as_stale() -> None:
    judge = Judge([call()])
    judge.purged(Floor(("all", ""), 2, since=100.9, proxy="stays", hard=False))
    assert faults(judge, result(x_cache="STALE")) == []
    assert faults(judge, result()) == [Fault.PURGED]


@pytest.mark.parametrize(("before", "expected"), [(100.5, [Fault.PURGED]), (100.1, [])])
def test_a_purge_by_age_spares_what_is_younger(before: float, expected: list[Fault]) -> None:
    judge = Judge([call()])
    judge.purged(Floor(("all", ""), 2, since=100.9, proxy="stays", before=before))
    assert faults(judge, result()) == expected


# ---- lifetimes and the client's wishes ----


def test_an_answer_past_its_lifetime_is_told() -> None:
    late: dict[str, Any] = {"began": 117.0, "ended": 117.1}
    assert faults(Judge([call()]), result(**late)) == [Fault.TOO_OLD]
    assert faults(Judge([call()]), result(began=115.0, ended=115.1)) == []


def test_stale_on_error_is_for_announced_errors_alone() -> None:
    body = BODY | {"model": "fault-tolerant"}
    old = result(body, began=130.0, ended=130.1, x_cache="STALE")
    judge = Judge([call()])
    judge.windows.append(Window("errors", 129.0, frozenset(), frozenset({500})))
    assert faults(judge, old) == []
    assert faults(Judge([call()]), old) == [Fault.TOO_OLD]


@pytest.mark.parametrize(
    ("control", "changes"),
    [
        ("no-cache", {"x_cache": "MISS"}),
        ("max-age=1", {"began": 105.0, "ended": 105.1}),
        ("only-if-cached", {"x_cache": "MISS"}),
    ],
)
def test_a_wish_that_is_not_obeyed_is_told(control: str, changes: Mapping[str, Any]) -> None:
    asked = result(headers={"cache-control": control}, **changes)
    assert faults(Judge([call()]), asked) == [Fault.CONTROL]


def test_what_must_not_be_stored_is_no_hit_later() -> None:
    judge = Judge([call()])
    first = result(headers={"cache-control": "no-store"}, x_cache="MISS")
    assert faults(judge, first, result()) == [Fault.CONTROL]


# ---- failures ----


@pytest.mark.parametrize("came", [Came.BROKEN, Came.NO_ANSWER, Came.STATUS, Came.HUNG])
def test_a_failure_that_nobody_announced_is_told(came: Came) -> None:
    assert faults(Judge([]), result(came=came, status=500)) == [Fault.FAILED]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window("w", 100.0, frozenset({Came.BROKEN}), ended=101.05), []),
        (Window("w", 100.0, frozenset({Came.BROKEN}), ended=100.9), [Fault.FAILED]),
        (Window("w", 101.2, frozenset({Came.BROKEN})), [Fault.FAILED]),
        (Window("w", 100.0, frozenset({Came.STATUS}), frozenset({500})), [Fault.FAILED]),
        (Window("w", 100.0, frozenset({Came.BROKEN}), proxy="killed"), [Fault.FAILED]),
    ],
    ids=["in time", "before", "after", "of another kind", "of another proxy"],
)
def test_a_window_excuses_what_it_announces(window: Window, expected: list[Fault]) -> None:
    judge = Judge([])
    judge.windows.append(window)
    assert faults(judge, result(came=Came.BROKEN)) == expected


def test_a_wrong_or_shortened_answer_is_never_excused() -> None:
    judge = Judge([])
    judge.windows.append(Window("w", 0.0, frozenset(Came), frozenset({200})))
    wrong, short = result(came=Came.WRONG), result(came=Came.SHORTENED)
    assert faults(judge, wrong, short) == [Fault.WRONG, Fault.SHORTENED]


# ---- upstream calls ----


def missed(**changes: Any) -> Result:
    return result(began=99.9, ended=100.3, x_cache="MISS", **changes)


def test_a_miss_explains_one_call() -> None:
    calls = [call(1), call(2, began=100.1)]
    assert unexplained(calls[:1], [missed()]) == []
    assert unexplained(calls, [missed()]) == calls[1:]
    assert unexplained(calls, [missed(), missed()]) == []


def test_a_failed_call_may_be_tried_once_more() -> None:
    calls = [call(1, ending=Ending.ERROR), call(2, began=100.1)]
    assert unexplained(calls, [missed()]) == []


@pytest.mark.parametrize(
    "other",
    [
        missed(proxy="killed"),
        result(began=99.9, ended=100.3),
        missed(cache_status="magic-proxy; fwd=miss; collapsed"),
        result(BODY | {"temperature": 1.0}, began=99.9, ended=100.3, x_cache="MISS"),
        result(began=90.0, ended=90.1, x_cache="MISS"),
    ],
    ids=["at another proxy", "a hit", "collapsed", "another request", "long ago"],
)
def test_nothing_else_explains_a_call(other: Result) -> None:
    assert unexplained([call()], [other]) == [call()]


def test_a_batch_explains_a_call_for_some_of_its_inputs_each_once() -> None:
    digests = {item: item_digest("embedder", item) for item in "abc"}
    body = {"model": "embedder", "input": ["a", "b", "c", "a"]}
    some = call(1, digests=(digests["a"], digests["c"]))
    again = call(2, digests=(digests["a"],))
    rest = call(3, digests=(digests["b"],))
    batch = result(body, began=99.9, ended=100.3, x_cache="MISS")
    assert unexplained([some, again, rest], [batch]) == [again]
