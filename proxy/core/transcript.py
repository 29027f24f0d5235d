"""Assembling a completion from the chunks of its stream, losing nothing that they carry.

The rules, by the place of a member:

- top level: `id`, `created` and `model` are the first that is not empty, everything else the last
  that is not null; `obfuscation` is padding of the delivery and left out.
- choice: `logprobs` lists are joined; of members that are not known here, lists are joined,
  objects are merged, and otherwise the last that is not null counts.
- delta, at every depth: strings are joined, objects merged, of numbers and booleans the last
  counts. Lists are joined, except that an object with an `index` continues the last one with the
  same index, unless `id` or `type` say that it is another one.
- `id`, `type`, `role` and `format` name a thing and are taken once. `name` is joined, but a
  repeat of the whole name is not.

Source: OpenAI's API reference, "chat completion chunk object", and what other providers send.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from proxy.core.entry import Usage

_FIRST_NON_EMPTY = frozenset({"id", "created", "model"})
_TAKEN_ONCE = frozenset({"id", "type", "role", "format"})
# More than any answer has; what is deeper could not be serialised again.
_MAX_DEPTH = 100


class NotAChunk(ValueError):
    """An event's data is not a JSON object of the shape that chunks have."""


class NotAssemblable(ValueError):
    """The chunks contradict each other: they don't tell one completion."""


class _Text(list[str]):
    """A string in pieces: joined once, at the end."""


def read_usage(usage: object) -> Usage | None:
    """The token counts of a `usage` object; None where it is not one."""
    if not isinstance(usage, dict):
        return None
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        total_tokens=_count(usage.get("total_tokens")),
    )


def usage_in(body: bytes) -> Usage | None:
    """The same of an answer that need not be one: what it cost, also where it is no good."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return read_usage(answer.get("usage")) if isinstance(answer, dict) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


class Transcript:
    """Takes the data of each event of a chat stream (not `[DONE]`), in order."""

    __slots__ = ("_choices", "_same", "_top", "_usage", "contradicts", "error")

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._same: dict[str, Any] | None = None
        """The last chunk's members, where a chunk that has the same ones changes nothing."""
        self._choices: dict[int, _Choice] = {}
        self._usage: dict[str, Any] | None = None
        self.error = False
        self.contradicts = False

    def add(self, data: bytes) -> None:
        """Take one chunk. Raises `NotAChunk`."""
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise NotAChunk(str(error)) from error
        if not isinstance(chunk, dict):
            raise NotAChunk("a chunk is a JSON object")
        choices, usage = chunk.pop("choices", None), chunk.pop("usage", None)
        chunk.pop("obfuscation", None)
        if chunk != self._same:
            self._add_members(chunk)
        if choices is not None:
            self._add_choices(choices)
        if isinstance(usage, dict):
            self._usage = usage

    @property
    def usage(self) -> Usage | None:
        """What the last chunk with a usage object said."""
        return read_usage(self._usage)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The finish reasons so far, in the order of the choices."""
        reasons = (self._choices[index].finish_reason for index in sorted(self._choices))
        return tuple(reason for reason in reasons if reason)

    @property
    def complete(self) -> bool:
        """True if there is a choice, and every choice has a finish reason."""
        return bool(self._choices) and all(
            choice.finish_reason for choice in self._choices.values()
        )

    def completion(self) -> dict[str, Any]:
        """The `chat.completion` so far. Raises `NotAssemblable`.

        Normal form: a message without `role` or `content` gets `assistant` and null, tool calls
        carry no `index`, and there is no `usage` where the stream had none.
        """
        if self.contradicts:
            raise NotAssemblable("the chunks contradict each other")
        choices = [self._choices[index].finished() for index in sorted(self._choices)]
        completion = {**self._top, "object": "chat.completion", "choices": choices}
        if self._usage is not None:
            completion["usage"] = self._usage
        return completion

    def _add_members(self, members: dict[str, Any]) -> None:
        top = self._top
        for name, value in members.items():
            if name == "error":
                self.error = self.error or value is not None
            elif value is None:
                top.setdefault(name, None)
            elif name not in _FIRST_NON_EMPTY or not top.get(name):
                top[name] = value
        # To Python numbers are the same that are spelled differently: of these the last one counts.
        is_exact = all(
            value is None or isinstance(value, str) or name in _FIRST_NON_EMPTY
            for name, value in members.items()
        )
        self._same = members if is_exact else None

    def _add_choices(self, choices: object) -> None:
        if not isinstance(choices, list):
            raise NotAChunk("`choices` is a list")
        for choice in choices:
            if not isinstance(choice, dict):
                raise NotAChunk("a choice is a JSON object")
            index = choice.get("index", 0)
            if not isinstance(index, int):
                raise NotAChunk("the index of a choice is a whole number")
            held = self._choices.get(index)
            if held is None:
                held = self._choices[index] = _Choice(index)
            try:
                held.add(choice)
            except NotAssemblable:
                self.contradicts = True


class _Choice:
    """One choice as it grows."""

    __slots__ = ("_fields", "_index", "_message", "finish_reason")

    def __init__(self, index: int) -> None:
        self._index = index
        self._message: dict[str, Any] = {}
        self._fields: dict[str, Any] = {}
        self.finish_reason: str | None = None

    def add(self, choice: Mapping[str, Any]) -> None:
        for name, value in choice.items():
            if name == "index":
                continue
            if name == "delta":
                if isinstance(value, dict):
                    _merge(self._message, value)
                elif value is not None:
                    raise NotAssemblable("a delta is an object")
            elif name == "finish_reason":
                if isinstance(value, str) and value:
                    self.finish_reason = value
            elif name == "message":
                raise NotAssemblable("a chunk carries a delta, not a message")
            elif value is None:
                self._fields.setdefault(name, None)
            else:
                _settle(self._fields, name, value)

    def finished(self) -> dict[str, Any]:
        message = _joined(self._message)
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            message["tool_calls"] = [_without_index(call) for call in calls]
        return {
            "index": self._index,
            "message": {"role": "assistant", "content": None, **message},
            **self._fields,
            "finish_reason": self.finish_reason,
        }


def _without_index(call: object) -> object:
    if not isinstance(call, dict):
        return call
    return {name: value for name, value in call.items() if name != "index"}


def _settle(fields: dict[str, Any], name: str, value: object, depth: int = 0) -> None:
    """A member of a choice, beside its delta: `logprobs`, and what is not known here."""
    if depth > _MAX_DEPTH:
        raise NotAssemblable("nested too deeply")
    held = fields.get(name)
    if isinstance(held, dict) and isinstance(value, dict):
        for inner, inner_value in value.items():
            if inner_value is None:
                held.setdefault(inner, None)
            else:
                _settle(held, inner, inner_value, depth + 1)
    elif isinstance(held, list) and isinstance(value, list):
        held.extend(value)
    else:
        fields[name] = value


def _merge(into: dict[str, Any], delta: Mapping[str, Any], depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise NotAssemblable("nested too deeply")
    for name, value in delta.items():
        held = into.get(name)
        if isinstance(held, _Text) and isinstance(value, str):
            held.append(value)
        elif value is None:
            into.setdefault(name, None)
        elif held is None and not isinstance(value, list):
            into[name] = value
        elif isinstance(value, str):
            into[name] = _with_text(name, held, value)
        elif isinstance(value, dict | list):
            into[name] = _with_parts(name, held, value, depth)
        elif isinstance(held, int | float):
            into[name] = value
        else:
            raise NotAssemblable(f"`{name}` is a number and is not")


def _with_parts(name: str, held: Any, value: dict[str, Any] | list[Any], depth: int) -> object:
    if isinstance(value, list):
        held = [] if held is None else held
        if not isinstance(held, list) or isinstance(held, _Text):
            raise NotAssemblable(f"`{name}` is a list and is not")
        _extend(held, value, depth, calls=name == "tool_calls")
    elif isinstance(held, dict):
        _merge(held, value, depth + 1)
    else:
        raise NotAssemblable(f"`{name}` is an object and is not")
    return held


def _with_text(name: str, held: object, piece: str) -> object:
    if not isinstance(held, str):
        raise NotAssemblable(f"`{name}` is a string and is not")
    if not held or not piece:
        return held or piece
    if name in _TAKEN_ONCE or (name == "name" and piece == held):
        return held
    return held + piece if name == "name" else _Text((held, piece))


def _extend(held: list[Any], pieces: list[Any], depth: int, *, calls: bool) -> None:
    for piece in pieces:
        if isinstance(piece, dict) and (target := _continued(held, piece, calls=calls)) is not None:
            _merge(target, piece, depth + 1)
        else:
            held.append(piece)


def _continued(held: list[Any], piece: Mapping[str, Any], *, calls: bool) -> dict[str, Any] | None:
    """The entry of the list that `piece` goes on with; None where it starts another one."""
    index = piece.get("index")
    if isinstance(index, int):
        entries = (entry for entry in reversed(held) if isinstance(entry, dict))
        last = next((entry for entry in entries if entry.get("index") == index), None)
        return last if last is not None and _same_thing(last, piece) else None
    last = held[-1] if calls and held else None
    if not isinstance(last, dict):
        return None
    # Some providers number no tool calls: one with an id or a name is another one.
    function = piece.get("function")
    named = isinstance(function, dict) and function.get("name")
    if piece.get("id"):
        return last if last.get("id") == piece["id"] else None
    return None if named else last


def _same_thing(entry: Mapping[str, Any], piece: Mapping[str, Any]) -> bool:
    return all(
        not entry.get(name) or not piece.get(name) or entry[name] == piece[name]
        for name in ("id", "type")
    )


def _joined(value: Any, depth: int = 0) -> Any:
    """A copy in which the strings in pieces are whole."""
    if depth > _MAX_DEPTH:
        raise NotAssemblable("nested too deeply")
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _joined(member, depth + 1) for name, member in value.items()}
    if isinstance(value, list):
        return [_joined(item, depth + 1) for item in value]
    return value
