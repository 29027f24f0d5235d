"""Telling a completion as the chunks of a stream, which any client assembles back to the same.

The shape is that of OpenAI's own streams: a role chunk, text, tool calls numbered and each with its
arguments in a chunk of their own, a finish chunk per choice, and the usage chunk at the end.
Every member comes once in all, so that joining and last-one-counts give the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_OWN_CHUNKS = frozenset({"role", "content", "refusal", "tool_calls", "function_call"})
_OWN_CHOICE_MEMBERS = frozenset({"index", "message", "logprobs", "finish_reason"})


class NotACompletion(ValueError):
    """The object is not of the shape that chat completions have."""


def chunks_from_completion(
    completion: Mapping[str, Any], *, include_usage: bool
) -> list[dict[str, Any]]:
    """The chunks, without the `[DONE]` that ends their stream. Raises `NotACompletion`.

    Scalars of the top level stand on every chunk, lists and objects on the first one only. With
    `include_usage` there is a usage chunk, if the completion has usage, and the other chunks say
    `"usage": null`, as OpenAI's do.
    """
    choices = completion.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise NotACompletion("`choices` is a list of objects")
    numbered = sorted(
        ((_index(choice, place), choice) for place, choice in enumerate(choices)),
        key=lambda pair: pair[0],
    )
    if len({index for index, _ in numbered}) < len(numbered):
        raise NotACompletion("two choices have the same index, and would become one")
    common = {
        name: "chat.completion.chunk" if name == "object" else value
        for name, value in completion.items()
        if name not in {"choices", "usage"}
    }
    common.setdefault("object", "chat.completion.chunk")
    first = common
    repeated = {name: value for name, value in common.items() if not isinstance(value, dict | list)}
    no_usage = {"usage": None} if include_usage else {}
    chunks: list[dict[str, Any]] = []
    for index, choice in numbered:
        for piece in _pieces(choice):
            top = repeated if chunks else first
            chunks.append({**top, "choices": [{"index": index, **piece}], **no_usage})
    usage = completion.get("usage")
    if include_usage and usage is not None:
        top = repeated if chunks else first
        chunks.append({**top, "choices": [], "usage": usage})
    return chunks


def _index(choice: Mapping[str, Any], place: int) -> int:
    index = choice.get("index", place)
    if not isinstance(index, int):
        raise NotACompletion("the index of a choice is a whole number")
    return index


def _pieces(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The choice's chunks, without its index."""
    message = choice.get("message")
    if not isinstance(message, dict):
        raise NotACompletion("a choice has a message")
    logprobs = choice.get("logprobs")
    tail: dict[str, Any] = {"logprobs": None} if "logprobs" in choice else {}
    tail["finish_reason"] = None
    more = {name: value for name, value in choice.items() if name not in _OWN_CHOICE_MEMBERS}

    yield {"delta": _opening(message), **more, **tail}
    if rest := _unnamed_members(message):
        yield {"delta": rest, **tail}
    text = {name: message[name] for name in ("content", "refusal") if message.get(name)}
    if text or logprobs is not None:
        yield {"delta": text, **tail, **({} if logprobs is None else {"logprobs": logprobs})}
    for delta in _calls(message):
        yield {"delta": delta, **tail}
    yield {"delta": {}, **tail, "finish_reason": choice.get("finish_reason")}


def _opening(message: Mapping[str, Any]) -> dict[str, Any]:
    """The role, every null, and the start of the text."""
    delta: dict[str, Any] = {"role": message["role"]} if "role" in message else {}
    for name, value in message.items():
        if name == "content" and isinstance(value, str):
            delta[name] = ""
        elif value is None or (name in {"content", "refusal"} and not value):
            delta[name] = value
    return delta


def _unnamed_members(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in message.items()
        if value is not None and name not in _OWN_CHUNKS
    }


def _calls(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    function_call = message.get("function_call")
    if function_call is not None:
        if not isinstance(function_call, dict):
            raise NotACompletion("`function_call` is an object")
        opening, arguments = _split_arguments(function_call)
        yield {"function_call": opening}
        if arguments is not None:
            yield {"function_call": arguments}
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise NotACompletion("`tool_calls` is a list of objects")
    if not calls:
        yield {"tool_calls": []}
    for index, call in enumerate(calls):
        rest = {name: value for name, value in call.items() if name != "index"}
        function = rest.get("function")
        arguments = None
        if isinstance(function, dict):
            rest["function"], arguments = _split_arguments(function)
        yield {"tool_calls": [{"index": index, **rest}]}
        if arguments is not None:
            yield {"tool_calls": [{"index": index, "function": arguments}]}


def _split_arguments(
    function: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The function with empty arguments, and the arguments; None where there are none to split."""
    arguments = function.get("arguments")
    if not isinstance(arguments, str) or not arguments:
        return dict(function), None
    return {**function, "arguments": ""}, {"arguments": arguments}
