"""The two forms of a chat completion: one JSON document, or server-sent events."""

from collections.abc import Iterator
from typing import Any

import orjson

from proxy.standin.chat import Choice, Completion, logprobs_of

FINGERPRINT = "fp_standin"
DONE = b"data: [DONE]\n\n"


def as_json(completion: Completion) -> bytes:
    """The document, indented as OpenAI writes it."""
    document: dict[str, Any] = {
        "id": completion.id,
        "object": "chat.completion",
        "created": completion.created,
        "model": completion.model,
        "choices": [_json_choice(choice, completion) for choice in completion.choices],
    }
    if completion.usage is not None:
        document["usage"] = completion.usage
    document |= {"service_tier": "default", "system_fingerprint": FINGERPRINT}
    return orjson.dumps(document | dict(completion.extra), option=orjson.OPT_INDENT_2)


def _json_choice(choice: Choice, completion: Completion) -> dict[str, Any]:
    called = bool(choice.tool_calls or choice.function_call or choice.refusal)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if called else "".join(choice.tokens),
        "refusal": "".join(choice.refusal) if choice.refusal else None,
        "annotations": [],
    }
    if choice.reasoning:
        message["reasoning_content"] = "".join(choice.reasoning)
    if choice.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in choice.tool_calls
        ]
    if choice.function_call:
        call = choice.function_call
        message["function_call"] = {"name": call.name, "arguments": call.arguments}
    return {
        "index": choice.index,
        "message": message,
        "logprobs": _logprobs(choice.tokens, completion),
        "finish_reason": choice.finish_reason,
    }


def as_events(completion: Completion, *, include_usage: bool) -> list[bytes]:
    """The events without `[DONE]`: a role, the tokens of all choices in turns, the ends, usage."""
    events = [
        _event(completion, [part], include_usage=include_usage)
        for parts in _rounds(completion)
        for part in parts
    ]
    if include_usage:
        events.append(_event(completion, [], include_usage=True, usage=completion.usage))
    return events


def _rounds(completion: Completion) -> Iterator[list[dict[str, Any]]]:
    """Each round holds one part of every choice that still has one, as `n` > 1 is streamed."""
    running = [_parts(choice, completion) for choice in completion.choices]
    while running:
        parts = [(source, next(source, None)) for source in running]
        running = [source for source, part in parts if part is not None]
        yield [part for _, part in parts if part is not None]


def _parts(choice: Choice, completion: Completion) -> Iterator[dict[str, Any]]:
    opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    if choice.tool_calls or choice.function_call:
        opening["content"] = None
    if choice.function_call:
        opening["function_call"] = {"name": choice.function_call.name, "arguments": ""}
    yield _part(choice, opening)
    for piece in choice.reasoning:
        yield _part(choice, {"reasoning_content": piece})
    for piece in choice.refusal:
        yield _part(choice, {"refusal": piece})
    for token in choice.tokens:
        yield _part(choice, {"content": token}, _logprobs((token,), completion))
    if choice.function_call:
        for piece in _cut(choice.function_call.arguments):
            yield _part(choice, {"function_call": {"arguments": piece}})
    for at, call in enumerate(choice.tool_calls):
        opened = {"name": call.name, "arguments": ""}
        first = {"index": at, "id": call.id, "type": "function", "function": opened}
        yield _part(choice, {"tool_calls": [first]})
        for piece in _cut(call.arguments):
            delta = {"index": at, "function": {"arguments": piece}}
            yield _part(choice, {"tool_calls": [delta]})
    yield _part(choice, {}, finish_reason=choice.finish_reason)


def _part(
    choice: Choice,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {
        "index": choice.index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }


def _event(
    completion: Completion,
    choices: list[dict[str, Any]],
    *,
    include_usage: bool,
    usage: Any = None,
) -> bytes:
    chunk: dict[str, Any] = {
        "id": completion.id,
        "object": "chat.completion.chunk",
        "created": completion.created,
        "model": completion.model,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
    }
    if include_usage:
        chunk["usage"] = usage
    return sse(chunk | dict(completion.extra))


def sse(value: Any) -> bytes:
    """One event with `value` as its JSON."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _logprobs(tokens: tuple[str, ...], completion: Completion) -> dict[str, Any] | None:
    if completion.top_logprobs is None or not tokens:
        return None
    return {"content": logprobs_of(tokens, completion.top_logprobs), "refusal": None}


def _cut(arguments: str, size: int = 5) -> Iterator[str]:
    for at in range(0, len(arguments), size):
        yield arguments[at : at + size]
