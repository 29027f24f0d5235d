"""B22, B23: completion → chunks → completion is the identity, however the text is cut."""

import copy
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.chunks import chunks_from_completion
from proxy.core.transcript import Transcript


def _numbered(completion: dict[str, Any]) -> dict[str, Any]:
    choices = [{"index": index, **choice} for index, choice in enumerate(completion["choices"])]
    return {**completion, "choices": choices}


TEXT = st.text(max_size=12)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "id", "type", "name", "role", "ü"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FUNCTIONS = st.fixed_dictionaries({"name": TEXT, "arguments": TEXT}, optional={"novel": JSON})
CALLS = st.fixed_dictionaries(
    {"id": TEXT.filter(bool)},
    optional={"type": st.just("function"), "function": FUNCTIONS, "custom": JSON},
)
NUMBERED = st.lists(
    st.fixed_dictionaries({"index": st.integers(0, 9), "text": TEXT}),
    max_size=3,
    unique_by=lambda entry: entry["index"],
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | TEXT | st.lists(JSON, max_size=2)},
    optional={
        "refusal": st.none() | TEXT,
        "reasoning_content": st.none() | TEXT,
        "reasoning_details": NUMBERED,
        "tool_calls": st.none() | st.lists(CALLS, max_size=3),
        "function_call": st.none() | FUNCTIONS,
        "audio": st.none() | st.dictionaries(st.sampled_from(["id", "data", "expires_at"]), TEXT),
        "novel": JSON,
    },
)
TOKENS = st.lists(st.fixed_dictionaries({"token": TEXT, "logprob": NUMBERS}), max_size=3)
CHOICES = st.fixed_dictionaries(
    {"message": MESSAGES, "finish_reason": st.sampled_from(["stop", "tool_calls"])},
    optional={
        "logprobs": st.none()
        | st.fixed_dictionaries({"content": st.none() | TOKENS}, optional={"refusal": TOKENS}),
        "novel": JSON,
    },
)
COMPLETIONS = st.fixed_dictionaries(
    {
        "id": TEXT,
        "object": st.just("chat.completion"),
        "created": st.integers(0, 2**40),
        "model": TEXT,
        "choices": st.lists(CHOICES, min_size=1, max_size=3),
    },
    optional={
        "usage": st.dictionaries(TEXT, JSON, min_size=1, max_size=3),
        "system_fingerprint": st.none() | TEXT,
        "novel": JSON,
        "citations": st.lists(TEXT, max_size=2),
    },
).map(_numbered)


def _exact(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _assembled(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    transcript = Transcript()
    for chunk in chunks:
        transcript.add(orjson.dumps(chunk))
    assert transcript.complete
    return transcript.completion()


@given(COMPLETIONS)
def test_B23_a_completion_told_in_chunks_is_the_same_completion(completion: dict[str, Any]) -> None:
    before = copy.deepcopy(completion)
    chunks = chunks_from_completion(completion, include_usage=True)
    assert _exact(_assembled(chunks)) == _exact(completion)
    assert completion == before
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)


@given(COMPLETIONS)
def test_B24_chunks_without_usage_differ_in_that_alone(completion: dict[str, Any]) -> None:
    chunks = chunks_from_completion(completion, include_usage=False)
    assert not any("usage" in chunk for chunk in chunks)
    without = {name: value for name, value in completion.items() if name != "usage"}
    assert _exact(_assembled(chunks)) == _exact(without)


def _in_pieces(chunk: dict[str, Any], place: int) -> list[dict[str, Any]]:
    """The chunk's text in two chunks, each with all that names the choice and the tool call."""
    if not chunk["choices"]:
        return [chunk]
    (choice,) = chunk["choices"]
    delta = choice["delta"]
    pieces = []
    for cut in (slice(None, place), slice(place, None)):
        part = {
            name: value if name == "role" else _cut(value, cut) for name, value in delta.items()
        }
        more = {} if cut.start is None else {"logprobs": None} if "logprobs" in choice else {}
        pieces.append({**chunk, "choices": [{**choice, "delta": part, **more}]})
    return pieces


def _cut(value: Any, cut: slice) -> Any:
    if isinstance(value, str):
        return value[cut]
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return [
            {
                name: {**member, "arguments": member["arguments"][cut]}
                if name == "function" and "arguments" in member
                else member
                for name, member in part.items()
            }
            for part in value
        ]
    return value


SIMPLE = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | TEXT},
    optional={
        "refusal": TEXT,
        "reasoning": TEXT,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {
                    "id": TEXT.filter(bool),
                    "type": st.just("function"),
                    "function": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT}),
                }
            ),
            min_size=1,
            max_size=3,
        ),
    },
)


@given(SIMPLE, TEXT, st.integers(0, 12))
def test_B22_text_cut_anywhere_and_names_on_every_chunk_assemble_the_same(
    message: dict[str, Any], name: str, place: int
) -> None:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    completion = {"id": "c", "object": "chat.completion", "model": name, "choices": [choice]}
    chunks = chunks_from_completion(completion, include_usage=False)
    pieces = [piece for chunk in chunks for piece in _in_pieces(chunk, place)]
    assert _exact(_assembled(pieces)) == _exact(completion)


@given(st.lists(st.dictionaries(st.sampled_from(["choices", "usage", "id"]), JSON), max_size=4))
def test_odd_chunks_raise_nothing_undeclared(chunks: list[dict[str, Any]]) -> None:
    transcript = Transcript()
    for chunk in chunks:
        try:
            transcript.add(orjson.dumps(chunk))
        except ValueError:
            return
    assert transcript.contradicts or isinstance(transcript.completion(), dict)


DELTAS = st.dictionaries(
    st.sampled_from(["content", "tool_calls", "x"]),
    JSON | st.lists(st.fixed_dictionaries({"index": st.integers(0, 2)}, optional={"a": JSON})),
)


@given(st.lists(DELTAS, max_size=5))
def test_odd_deltas_raise_nothing_undeclared(deltas: list[dict[str, Any]]) -> None:
    transcript = Transcript()
    for delta in deltas:
        transcript.add(orjson.dumps({"choices": [{"index": 0, "delta": delta}]}))
    assert transcript.contradicts or isinstance(transcript.completion(), dict)
