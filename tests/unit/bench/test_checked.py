"""A client that checks its answer tells what is whole from what broke off, was cut, or is wrong."""

from typing import Any

import orjson
import pytest

from bench.checked import Ask, Came, Result, judge_answer
from bench.stamped import Stamp, through_answer, through_digest

PATH = "/responses"
BODY = {"model": "m", "input": "Hello"}
ANSWER = through_answer(Stamp(through_digest(PATH, BODY), 1, 7, 12.5))
WHOLE = orjson.dumps(ANSWER)
ERROR = orjson.dumps({"error": {"message": "As arranged."}})


def came(content: bytes, status: int = 200, **members: Any) -> Came:
    ask = Ask("responses", "", **{"body": BODY, "path": PATH} | members)
    result = Result(ask, began=0.0, status=status)
    judge_answer(result, content, "application/json")
    return result.came


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (WHOLE, Came.WHOLE),
        (WHOLE[:-20], Came.SHORTENED),
        (b"", Came.SHORTENED),
        (ERROR, Came.BROKEN),
        (orjson.dumps(ANSWER | {"words": ["other"]}), Came.WRONG),
        (orjson.dumps({"object": "list"}), Came.WRONG),
    ],
    ids=["whole", "cut", "empty", "error", "other words", "no stamp"],
)
def test_what_passed_through_is_judged(content: bytes, expected: Came) -> None:
    assert came(content) is expected


def test_the_answer_to_another_request_is_wrong() -> None:
    assert came(WHOLE, body=BODY | {"input": "Goodbye"}) is Came.WRONG
    assert came(WHOLE, path="/other") is Came.WRONG


def test_an_error_is_told_as_one() -> None:
    assert came(ERROR, status=503) is Came.STATUS


@pytest.mark.parametrize("content", [WHOLE[:-20], b""], ids=["cut", "empty"])
def test_a_plain_completion_that_is_no_json_was_cut(content: bytes) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    assert came(content, body=body, path="") is Came.SHORTENED
