"""Stamped answers in the forms of the API: a completion, a stream of one, a list of embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from bench.stamped import Stamp, as_base64, chat_usage, chat_words, token_count, vector


def completion(body: Mapping[str, Any], stamp: Stamp) -> dict[str, Any]:
    """The whole answer to a chat request."""
    message = {"role": "assistant", "content": "".join(chat_words(stamp)), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _chunk(body, stamp) | {
        "object": "chat.completion",
        "choices": [choice],
        "usage": chat_usage(body, stamp),
    }


def stream_events(body: Mapping[str, Any], stamp: Stamp) -> list[bytes]:
    """The same as a stream: an event for each of `chat_words`, then those of its end."""
    said: list[tuple[dict[str, str], str | None]] = [
        ({"content": word}, None) for word in chat_words(stamp)
    ]
    chunks = [
        _chunk(body, stamp)
        | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        for delta, finish in [*said, ({}, "stop")]
    ]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append(_chunk(body, stamp) | {"choices": [], "usage": chat_usage(body, stamp)})
    return [*(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"]


def embeddings(body: Mapping[str, Any], stamps: Sequence[Stamp]) -> dict[str, Any]:
    """A vector for each input, in an order that the API does not promise: the last one first."""
    encode = as_base64 if body.get("encoding_format") == "base64" else list
    rows = [
        {"object": "embedding", "index": index, "embedding": encode(vector(stamp))}
        for index, stamp in enumerate(stamps)
    ]
    rows.reverse()
    tokens = sum(token_count(item) for item in items_of(body))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": rows, "model": body["model"], "usage": usage}


def items_of(body: Mapping[str, Any]) -> list[str]:
    """The inputs of an embeddings request."""
    given = body["input"]
    return [given] if isinstance(given, str) else list(given)


def _chunk(body: Mapping[str, Any], stamp: Stamp) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{stamp.number}",
        "object": "chat.completion.chunk",
        "created": int(stamp.moment),
        "model": body["model"],
    }
