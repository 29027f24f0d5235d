"""What a chat completion says, before it takes the form of JSON or of a stream."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.standin.script import Script
from proxy.standin.text import count_tokens, fit, numbers, seed_of, token_texts

DELIVERY_FIELDS = frozenset({"stream", "stream_options", "user", "metadata", "store"})
DEFAULT_TOKENS = 24
PIECE_CHARACTERS = 6


@dataclass(frozen=True, slots=True)
class Identity:
    """What is new in every call: the id, and the time in whole seconds."""

    number: str
    created: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice, its texts cut into tokens."""

    index: int
    finish_reason: str
    tokens: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    refusal: tuple[str, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    function_call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `top_logprobs` is None where the request asked for no log probabilities."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Mapping[str, Any] | None
    top_logprobs: int | None
    extra: Mapping[str, Any]


def plan_completion(request: Mapping[str, Any], script: Script, identity: Identity) -> Completion:
    """Answer `request`: the same content for the same request, under a new id each time."""
    content = {name: value for name, value in request.items() if name not in DELIVERY_FIELDS}
    seed = seed_of(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
    choices = tuple(
        _plan_choice(request, script, seed_of(seed, bytes([index])), index)
        for index in range(int(request.get("n") or 1))
    )
    return Completion(
        id=f"chatcmpl-{identity.number}",
        created=identity.created,
        model=str(request["model"]),
        choices=choices,
        usage=_usage(request, choices) if script.usage else None,
        top_logprobs=int(request.get("top_logprobs") or 0) if request.get("logprobs") else None,
        extra=script.extra or {},
    )


def _plan_choice(request: Mapping[str, Any], script: Script, seed: bytes, index: int) -> Choice:
    reasoning = _pieces(script.reasoning or "")
    if script.refusal is not None:
        return Choice(
            index=index,
            finish_reason=script.finish_reason or "stop",
            reasoning=reasoning,
            refusal=_pieces(script.refusal),
        )
    calls = () if script.content is not None else _plan_calls(request, script, seed)
    if calls:
        legacy = "tools" not in request
        return Choice(
            index=index,
            finish_reason=script.finish_reason or ("function_call" if legacy else "tool_calls"),
            reasoning=reasoning,
            tool_calls=() if legacy else calls,
            function_call=calls[0] if legacy else None,
        )
    tokens, cut = _plan_text(request, script, seed)
    return Choice(
        index=index,
        finish_reason=script.finish_reason or ("length" if cut else "stop"),
        tokens=tokens,
        reasoning=reasoning,
    )


def _plan_text(
    request: Mapping[str, Any], script: Script, seed: bytes
) -> tuple[tuple[str, ...], bool]:
    """The tokens, and whether the request's limit cut them short."""
    wanted = request.get("response_format") or {}
    if script.content is not None:
        tokens = _pieces(script.content)
    elif wanted.get("type") == "json_schema":
        value = fit(wanted["json_schema"].get("schema", {}), seed)
        tokens = _pieces(orjson.dumps(value).decode())
    elif wanted.get("type") == "json_object":
        tokens = _pieces(orjson.dumps({"answer": "".join(token_texts(seed, 4))}).decode())
    else:
        tokens = tuple(token_texts(seed, script.tokens or DEFAULT_TOKENS))
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if limit is not None and len(tokens) > limit:
        return tokens[:limit], True
    return tokens, False


def _plan_calls(request: Mapping[str, Any], script: Script, seed: bytes) -> tuple[ToolCall, ...]:
    """The functions to call: those of `tool_choice`, else the first; none after their results."""
    offered = [tool["function"] for tool in request.get("tools") or () if "function" in tool]
    choice = request.get("tool_choice")
    if "tools" not in request:
        offered = list(request.get("functions") or ())
        choice = request.get("function_call")
    last = (request.get("messages") or [{}])[-1]
    if choice == "none" or last.get("role") in {"tool", "function"}:
        return ()
    if isinstance(choice, dict):
        name = choice.get("function", choice).get("name")
        offered = [function for function in offered if function["name"] == name]
    elif not request.get("parallel_tool_calls"):
        offered = offered[:1]
    return tuple(
        _plan_call(function, script, seed_of(seed, bytes([at])))
        for at, function in enumerate(offered)
    )


def _plan_call(function: Mapping[str, Any], script: Script, seed: bytes) -> ToolCall:
    arguments = script.arguments
    if arguments is None:
        arguments = orjson.dumps(
            fit(function.get("parameters") or {"type": "object"}, seed)
        ).decode()
    return ToolCall(id=f"call_{seed.hex()[:24]}", name=function["name"], arguments=arguments)


def _pieces(text: str) -> tuple[str, ...]:
    return tuple(text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS))


def _usage(request: Mapping[str, Any], choices: tuple[Choice, ...]) -> dict[str, Any]:
    prompt = count_tokens(orjson.dumps(request.get("messages") or []).decode())
    reasoning = sum(len(choice.reasoning) for choice in choices)
    said = reasoning + sum(
        len(choice.tokens)
        + len(choice.refusal)
        + sum(count_tokens(call.arguments) for call in choice.tool_calls)
        + (count_tokens(choice.function_call.arguments) if choice.function_call else 0)
        for choice in choices
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def logprobs_of(tokens: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    """The log probabilities of `tokens`, with `top` alternatives each."""
    return [_logprob(token) | {"top_logprobs": _alternatives(token, top)} for token in tokens]


def _logprob(token: str) -> dict[str, Any]:
    number = next(numbers(seed_of(token.encode())))
    return {"token": token, "logprob": -number / 65536, "bytes": list(token.encode())}


def _alternatives(token: str, top: int) -> list[dict[str, Any]]:
    return [_logprob(token if at == 0 else f"{token}{at}") for at in range(top)]
