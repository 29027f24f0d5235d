"""Calls through the OpenAI SDK, with the headers that tell what the cache did."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import openai
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ParsedChatCompletion

T = TypeVar("T")

CHAT: Mapping[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Name three rivers."}],
}
WEATHER_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True, slots=True)
class Told(Generic[T]):
    """What the SDK returned, and the headers that came with it (names in lower case)."""

    value: T
    headers: Mapping[str, str]

    @property
    def x_cache(self) -> str:
        return self.headers["x-cache"]

    @property
    def cache_status(self) -> list[str]:
        """The items of `Cache-Status`: the cache's name first."""
        return self.headers["cache-status"].split("; ")


def ask(client: openai.OpenAI, **over: Any) -> Told[ChatCompletion]:
    """One chat completion, not streamed."""
    raw = client.chat.completions.with_raw_response.create(**{**CHAT, **over})
    return Told(raw.parse(), dict(raw.headers))


def ask_streamed(client: openai.OpenAI, **over: Any) -> Told[list[ChatCompletionChunk]]:
    """One chat completion, streamed to its end."""
    raw = client.chat.completions.with_raw_response.create(**{**CHAT, "stream": True, **over})
    return Told(list(raw.parse()), dict(raw.headers))


def ask_assembled(client: openai.OpenAI, **over: Any) -> ParsedChatCompletion[Any]:
    """One chat completion, streamed, and put together by the SDK."""
    with client.chat.completions.stream(**{**CHAT, **over}) as stream:
        return stream.get_final_completion()


def embed(client: openai.OpenAI, **over: Any) -> Told[CreateEmbeddingResponse]:
    """Embeddings, as the SDK asks for them: base64 unless the caller says otherwise."""
    request = {"model": "text-embedding-3-small", "input": ["amber", "birch"]}
    raw = client.embeddings.with_raw_response.create(**{**request, **over})
    return Told(raw.parse(), dict(raw.headers))


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    """The content that the chunks of one choice add up to."""
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    )


def said(completion: ChatCompletion) -> dict[str, Any]:
    """What a completion says, without what the SDK's own assembly adds or leaves out."""
    return {
        "id": completion.id,
        "created": completion.created,
        "model": completion.model,
        "fingerprint": completion.system_fingerprint,
        "tier": completion.service_tier,
        "choices": [_choice(choice) for choice in completion.choices],
    }


def _choice(choice: Any) -> dict[str, Any]:
    message = choice.message
    calls = message.tool_calls or []
    return {
        "index": choice.index,
        "finish_reason": choice.finish_reason,
        "content": message.content,
        "refusal": message.refusal,
        "reasoning": getattr(message, "reasoning_content", None),
        "calls": [(call.id, call.function.name, call.function.arguments) for call in calls],
        "logprobs": choice.logprobs.model_dump() if choice.logprobs else None,
    }
