"""What a body says of its tokens and of its prompt's start."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.prompt import Prompt, read_prompt

SYSTEM = "You are a helpful assistant. " * 40


def body(question: str = "Why?", /, system: str = SYSTEM, **over: Any) -> bytes:
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": question},
    ]
    return orjson.dumps({"model": "m", "messages": messages, **over})


def prefix(raw: bytes, chars: int = 500) -> bytes | None:
    return read_prompt(raw, chars).prefix


def test_B62_a_prompt_counts_a_quarter_of_its_bytes_and_what_it_may_be_answered() -> None:
    raw = body(max_tokens=100)
    assert read_prompt(raw) == Prompt(len(raw) // 4, 100)
    assert read_prompt(body(max_tokens=100, n=3)).output_tokens == 300
    assert read_prompt(body(max_completion_tokens=7, max_tokens=100)).output_tokens == 7
    assert read_prompt(body(max_tokens=None, n=None)).output_tokens == 0


def test_B62_a_picture_counts_as_some_text_and_not_by_its_bytes() -> None:
    picture = "data:image/png;base64," + "A" * 1_000_000
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": picture}}]
    raw = orjson.dumps({"messages": [{"role": "user", "content": parts}]})
    assert 1_000 <= read_prompt(raw).prompt_tokens <= 1_100


@pytest.mark.parametrize("raw", [b"", b"[1]", b"null", b"{", b'"text"', b"\xff" * 40])
def test_B62_what_is_no_request_counts_by_its_length(raw: bytes) -> None:
    assert read_prompt(raw, 10) == Prompt(len(raw) // 4, 0)


def test_B62_prompts_with_the_same_start_have_the_same_prefix() -> None:
    assert prefix(body("Why?")) is not None
    assert prefix(body("Why?")) == prefix(body("How?", temperature=0.5))
    assert prefix(body()) != prefix(body(system="X" + SYSTEM))


def test_B62_the_order_of_members_is_no_part_of_the_prefix() -> None:
    fields = orjson.loads(body())
    assert prefix(orjson.dumps(dict(reversed(fields.items())))) == prefix(body())


def test_B62_tools_stand_before_the_messages_as_for_providers() -> None:
    tools = [{"type": "function", "function": {"name": "f" * 600}}]
    assert prefix(body(tools=tools)) == prefix(body(system="other" * 200, tools=tools))


def test_B62_a_prompt_that_is_shorter_has_no_prefix() -> None:
    assert prefix(body(), 100_000) is None
    assert prefix(orjson.dumps({"input": "text " * 500})) is None


def test_B69_a_prefix_shows_nothing_of_the_prompt() -> None:
    digest = prefix(body("secret words", system="secret words " * 100))
    assert digest is not None
    assert len(digest) == 16
    assert b"secret" not in digest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "content", "role", "image_url", "url", "tools", "n", "max_tokens"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON, st.integers(0, 50))
def test_B62_any_json_is_read(value: Any, chars: int) -> None:
    prompt = read_prompt(orjson.dumps(value), chars)
    assert prompt.prompt_tokens >= 0
    assert prompt.output_tokens >= 0
