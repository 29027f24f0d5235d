"""Errors that another model may not have, in the spellings of many providers."""

import gzip

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.troubles import trouble_of
from proxy.upstream.verdict import Trouble

LONG, FILTERED = Trouble.CONTEXT_WINDOW, Trouble.CONTENT_POLICY


def error(message: str = "no", **members: object) -> bytes:
    return orjson.dumps({"error": {"message": message, **members}})


@pytest.mark.parametrize(
    ("status", "body", "trouble"),
    [
        # OpenAI, Azure
        (400, error(code="context_length_exceeded", type="invalid_request_error"), LONG),
        (400, error("This model's maximum context length is 8192 tokens. However, ..."), LONG),
        (400, error("Input tokens exceed the configured limit of 272000 tokens."), LONG),
        (400, error(code="content_filter", innererror={"code": "x"}), FILTERED),
        (400, error(innererror={"code": "ResponsibleAIPolicyViolation"}), FILTERED),
        (400, error(code="content_policy_violation"), FILTERED),
        (400, error("Invalid prompt: ... flagged as potentially violating our usage policy"), FILTERED),
        (400, error("Your request was rejected as a result of our safety system."), FILTERED),
        # vLLM: flat, and a number for a code
        (400, orjson.dumps({"object": "error", "message": "This model's maximum context length is 4",
                            "type": "BadRequestError", "code": 400}), LONG),
        # llama.cpp
        (400, error("request (13392 tokens) exceeds the available context size (8192 tokens)",
                    type="exceed_context_size_error", code=400), LONG),
        # Anthropic, Bedrock, Gemini, Mistral, Cerebras, text-generation-inference, Groq
        (400, error("prompt is too long: 210000 tokens > 200000 maximum"), LONG),
        (400, error("input length and `max_tokens` exceed context limit: 198602 + 20000"), LONG),
        (400, error("Input is too long for requested model."), LONG),
        (400, b"[%s]" % error("The input token count (1200000) exceeds the maximum number of tokens "
                              "allowed (1048576).", code=400, status="INVALID_ARGUMENT"), LONG),
        (400, error("Prompt contains 235396 tokens, too large for model with 131072 maximum "
                    "context length"), LONG),
        (400, error("Please reduce the length. Current length is 9000 while limit is 8192"), LONG),
        (422, error("`inputs` tokens + `max_new_tokens` must be <= 4096"), LONG),
        (413, error("exceeds the context window of this model", code="request_too_large"), LONG),
        (400, error("Output blocked by content filtering policy"), FILTERED),
        # DeepSeek, DashScope, OpenRouter
        (400, error("Content Exists Risk"), FILTERED),
        (400, error(code="data_inspection_failed"), FILTERED),
        (403, error('x/y requires moderation on Azure. Your input was flagged for "violence".',
                    code=403), FILTERED),
    ],
)  # fmt: skip
def test_both_troubles_are_known_in_many_spellings(
    status: int, body: bytes, trouble: Trouble
) -> None:
    assert trouble_of(status, (), body) is trouble
    zipped = trouble_of(status, ((b"Content-Encoding", b"gzip"),), gzip.compress(body))
    assert zipped is trouble


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, error("Invalid 'temperature'", code="decimal_above_max_value")),
        (
            400,
            error(
                "Invalid 'user': string too long. Expected maximum context length of 64",
                code="string_above_max_length",
            ),
        ),
        (400, b"not json"),
        (400, b"[]"),
        (400, b'{"error": "maximum context length"}'),
        (403, error("This model's maximum context length is 8192 tokens")),
        (429, error(code="context_length_exceeded")),
        (500, error(code="content_filter")),
        (200, error(code="content_filter")),
    ],
)
def test_everything_else_is_about_something_else(status: int, body: bytes) -> None:
    assert trouble_of(status, (), body) is None


@given(st.binary(max_size=200), st.sampled_from([400, 403, 413, 422]))
def test_no_body_breaks_it(body: bytes, status: int) -> None:
    trouble_of(status, ((b"content-encoding", b"gzip"),), body)
    trouble_of(status, (), body)
