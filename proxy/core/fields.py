"""What a body's members must be to be looked up; the rest is the upstream's to judge."""

from collections.abc import Mapping
from typing import assert_never

from proxy.core.wire import Endpoint, JsonValue
from proxy.errors import MalformedBody


def check_fields(endpoint: Endpoint, fields: Mapping[str, JsonValue]) -> None:
    """Raises `MalformedBody` for members that this proxy reads and that have a wrong type."""
    model = fields.get("model", "")
    if not isinstance(model, str):
        raise _wrong_type("model", "a string", model)
    match endpoint:
        case Endpoint.CHAT:
            _check_chat(fields)
        case Endpoint.EMBEDDINGS:
            _check_embeddings(fields)
        case Endpoint.RESOURCE:
            pass  # no body is read
        case _:
            assert_never(endpoint)


def model_name(fields: Mapping[str, JsonValue]) -> str | None:
    """The client's model name, or None where the body carries none."""
    name = fields.get("model")
    return name if isinstance(name, str) else None


def item_count(endpoint: Endpoint, fields: Mapping[str, JsonValue]) -> int | None:
    """How many vectors or choices the answer has to hold; None where the request does not say."""
    if endpoint is Endpoint.EMBEDDINGS:
        return input_count(fields)
    choices = fields.get("n")
    return choices if type(choices) is int else None


def input_count(fields: Mapping[str, JsonValue]) -> int | None:
    """How many vectors an embeddings request asks for; None where `input` has no known shape.

    A string and an array of token numbers are one input; an array of strings or of token arrays is
    one for each of its items.
    """
    given = fields.get("input")
    if isinstance(given, str):
        return 1
    if isinstance(given, list) and given:
        return 1 if isinstance(given[0], int | float) else len(given)
    return None


def _check_chat(fields: Mapping[str, JsonValue]) -> None:
    messages = fields.get("messages", [])
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of objects", messages)
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong_type(f"messages[{index}]", "an object", message)
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _wrong_type("stream", "a boolean", stream)
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _wrong_type("stream_options", "an object", options)


def _check_embeddings(fields: Mapping[str, JsonValue]) -> None:
    given = fields.get("input", "")
    if not isinstance(given, str | list):
        raise _wrong_type("input", "a string or an array", given)


def _json_name(value: JsonValue) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            assert_never(value)


def _wrong_type(param: str, expected: str, got: JsonValue) -> MalformedBody:
    found = _json_name(got)
    return MalformedBody(
        f"Invalid type for '{param}': expected {expected}, but got {found} instead.",
        param=param,
        code="invalid_type",
    )
