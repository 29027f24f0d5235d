"""Field paths: how a rule names parts of a request body.

    messages                    a member of the body
    messages[*].content         `content` of every element of `messages`
    tools[*].function.name      deeper
    metadata."a.b"              a name with special characters, as a JSON string
    *                           every member

A path is a mask: what it reaches is taken, and so is every value that lacks the shape that the
path expects, so that a strange request never loses a difference.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from proxy.core.wire import JsonValue

ELEMENTS: Final = None
Step: TypeAlias = str | None

_NAME: Final = re.compile(r"[^\s\"'.\[\]*]+")
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class FieldPath:
    """One parsed path; `steps` follow `root`: a member's name, or None for every element."""

    root: str
    steps: tuple[Step, ...] = ()
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> "FieldPath":
        """Read a path; ValueError says what is wrong and where."""
        if text == "*":
            return cls("*", (), text)
        root, at = _name_at(text, 0)
        steps: list[Step] = []
        while at < len(text):
            if text.startswith("[*]", at):
                steps.append(ELEMENTS)
                at += 3
            elif text[at] == ".":
                name, at = _name_at(text, at + 1)
                steps.append(name)
            else:
                _refuse(text, at, "expected '.', '[*]' or the end")
        # A quoted "*" at the root would read as "every member" everywhere else.
        if root == "*":
            _refuse(text, 0, "no field can be called '*'")
        return cls(root, tuple(steps), text)

    @property
    def takes_all(self) -> bool:
        """True for `*`."""
        return self.root == "*"

    def __str__(self) -> str:
        return self.text


def _name_at(text: str, at: int) -> tuple[str, int]:
    if quoted := _QUOTED.match(text, at):
        try:
            return str(json.loads(quoted.group())), quoted.end()
        except ValueError:
            _refuse(text, at, "the quoted name is not a JSON string")
    if plain := _NAME.match(text, at):
        return plain.group(), plain.end()
    return _refuse(text, at, "expected a field name")


def _refuse(text: str, at: int, what: str) -> "tuple[str, int]":
    raise ValueError(
        f"{text!r} is not a field path: {what} at character {at + 1}"
        " (examples: messages, messages[*].content, *)"
    )


@dataclass(frozen=True, slots=True)
class Mask:
    """The union of paths below one member: `members` apply to objects, `elements` to arrays."""

    members: dict[str, "Mask | Literal[True]"]
    elements: "Mask | Literal[True] | None" = None


# True stands for "whole": a path ends here.
Reach: TypeAlias = Mask | Literal[True]


def merge(paths: Iterable[tuple[Step, ...]]) -> Reach:
    """One mask that reaches what any of the paths (without their roots) reaches."""
    rest = list(paths)
    if any(not steps for steps in rest):
        return True
    by_step: dict[Step, list[tuple[Step, ...]]] = {}
    for first, *more in rest:
        by_step.setdefault(first, []).append(tuple(more))
    inner = by_step.pop(ELEMENTS, None)
    return Mask(
        members={name: merge(below) for name, below in by_step.items() if name is not None},
        elements=None if inner is None else merge(inner),
    )


def project(value: JsonValue, reach: Reach) -> JsonValue:
    """`value` pruned to the mask: positions in arrays stay, a strange shape is taken whole."""
    if reach is True:
        return value
    if type(value) is dict and reach.members:
        return {
            name: project(value[name], below)
            for name, below in reach.members.items()
            if name in value
        }
    if type(value) is list and reach.elements is not None:
        below = reach.elements
        return [project(element, below) for element in value]
    return value


def prune(value: JsonValue, reach: Reach) -> JsonValue:
    """`value` without what the mask reaches; an array whose elements are reached becomes empty."""
    if reach is True:
        return None
    if type(value) is dict and reach.members:
        return {
            name: prune(member, reach.members[name]) if name in reach.members else member
            for name, member in value.items()
            if reach.members.get(name) is not True
        }
    if type(value) is list and reach.elements is not None:
        below = reach.elements
        return [] if below is True else [prune(element, below) for element in value]
    return value


def reaches(value: JsonValue, reach: Reach) -> bool:
    """Whether anything in `value` lies under the mask (or has a shape it takes whole)."""
    if reach is True:
        return True
    if type(value) is dict and reach.members:
        return any(
            name in value and reaches(value[name], below) for name, below in reach.members.items()
        )
    if type(value) is list and reach.elements is not None:
        below = reach.elements
        return any(reaches(element, below) for element in value)
    return True


def replace_text(
    value: JsonValue, steps: tuple[Step, ...], change: Callable[[str], str]
) -> JsonValue:
    """A copy of `value` with `change` applied to the strings at `steps`.

    Where the path ends at an array, its strings are changed at any depth of arrays; objects are
    entered by name only. Unchanged parts are shared with the original, which is never modified.
    """
    if not steps:
        if type(value) is str:
            return change(value)
        if type(value) is list:
            return [replace_text(element, (), change) for element in value]
        return value
    first, rest = steps[0], steps[1:]
    if first is ELEMENTS:
        if type(value) is list:
            return [replace_text(element, rest, change) for element in value]
    elif type(value) is dict and first in value:
        return {**value, first: replace_text(value[first], rest, change)}
    return value
