"""Read YAML into plain values, and remember where each of them stands.

`${VAR}` and `${VAR:-default}` are replaced in values, after parsing, so that what a variable
holds can never become YAML; `$$` is a dollar sign. No message holds a value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from proxy.errors import Mistake
from proxy.settings.types import Plain, plain_scalar

Loc: TypeAlias = tuple[str | int, ...]

_IMPLICIT = "?"
_TAG = "tag:yaml.org,2002:"
_VARIABLE = re.compile(r"\$\$|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\})?")


class _Loader(yaml.SafeLoader):
    """Leaves scalars untyped: `plain_scalar` has the rules of YAML 1.2."""

    def resolve(self, kind: type[yaml.Node], _value: Any, _implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _IMPLICIT
        return f"{_TAG}seq" if kind is yaml.SequenceNode else f"{_TAG}map"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written: in a file (counted from 1), or in a variable."""

    file: str = ""
    line: int = 0
    column: int = 0
    variable: str = ""

    def mistake(self, message: str, path: str = "") -> Mistake:
        if self.variable:
            message = f"{message} (set by {self.variable})"
        return Mistake(message, path, self.file, self.line, self.column)


@dataclass(slots=True)
class Document:
    """What was written, where, and what is wrong with it. `broken` are values not to judge."""

    value: Any = None
    values: dict[Loc, Place] = field(default_factory=dict)
    names: dict[Loc, Place] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    broken: set[Loc] = field(default_factory=set)

    def place_of(self, loc: Loc, *, name: bool = False) -> Place:
        """The place of a value, or of its name; of the nearest one around it if it is absent."""
        if name and loc in self.names:
            return self.names[loc]
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.values:
                return self.values[loc[:end]]
        return Place()


def path_text(loc: Loc) -> str:
    """A place in the settings as people write it: `cache_settings.rules[0].ttl_seconds`."""
    text = ""
    for step in loc:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[\w-]+", step):
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


def parse(text: str, file: str, env: Mapping[str, str] | None) -> Document:
    """Read one document; `env` None leaves dollar signs alone."""
    document = Document()
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            document.value = _Reader(document, file, env).read(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        document.mistakes.append(Mistake(_syntax(error), "", file, line, column))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1
        message = f"this character is not allowed in YAML: U+{_code_point(error.character):04X}"
        document.mistakes.append(Mistake(message, "", file, line, column))
    except RecursionError:
        document.mistakes.append(Mistake("nested too deeply", "", file, 1, 1))
    return document


def _code_point(character: Any) -> int:
    return character if isinstance(character, int) else ord(character)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's words, without the piece of the file that it would quote."""
    problem = error.problem or error.context or "not YAML"
    if "'\\t'" in problem:
        return "a tab: YAML is indented with spaces"
    if problem.endswith("'{'"):
        problem += " (inside brackets, a text with `${…}` wants quotes)"
    context = f" {error.context}" if error.context and error.problem else ""
    return f"not YAML:{context}, {problem}" if context else f"not YAML: {problem}"


class _Reader:
    """Turns nodes into values, noting places."""

    def __init__(self, document: Document, file: str, env: Mapping[str, str] | None) -> None:
        self._document = document
        self._file = file
        self._env = env
        self._open: set[int] = set()

    def read(self, node: yaml.Node, loc: Loc) -> Any:
        self._document.values[loc] = self._place(node)
        if id(node) in self._open:
            return self._broken(node, loc, "an alias that contains itself")
        self._open.add(id(node))
        try:
            match node:
                case yaml.ScalarNode():
                    return self._scalar(node, loc)
                case yaml.SequenceNode(tag=tag) if tag == f"{_TAG}seq":
                    return [self.read(item, (*loc, at)) for at, item in enumerate(node.value)]
                case yaml.MappingNode(tag=tag) if tag == f"{_TAG}map":
                    return self._mapping(node, loc)
                case _:
                    return self._broken(node, loc, "this tag has no meaning here")
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        members: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                self._broken(name_node, loc, "a name must be a text")
                continue
            name = name_node.value
            if name == "<<" and name_node.style is None:
                merged |= self._merge(value_node, loc)
                continue
            here = (*loc, name)
            place = self._place(name_node)
            if name in members:
                first = self._document.names[here]
                self._document.mistakes.append(
                    place.mistake(
                        f"`{name}` stands twice; first at line {first.line}, column {first.column}",
                        path_text(here),
                    )
                )
                continue
            self._document.names[here] = place
            members[name] = self.read(value_node, here)
        return {**merged, **members}

    def _merge(self, node: yaml.Node, loc: Loc) -> dict[str, Any]:
        """The members that `<<: *anchor` brings in; a mapping's own members come before them."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode) or id(source) in self._open:
                self._broken(source, loc, "`<<` takes a mapping, or a list of mappings")
                continue
            kept = dict(self._document.names), dict(self._document.values)
            merged |= self._mapping(source, loc)
            # The mapping's own members were read before or will be after: theirs are the places.
            self._document.names |= kept[0]
            self._document.values |= kept[1]
        return merged

    def _scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        plain = node.style is None and node.tag == _IMPLICIT
        if node.tag in {f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool", f"{_TAG}null"}:
            return plain_scalar(node.value)
        if node.tag not in {_IMPLICIT, f"{_TAG}str"}:
            return self._broken(node, loc, "this tag has no meaning here")
        text, changed = self._expand(node, loc)
        if not plain:
            return text
        return Plain(text) if changed else plain_scalar(text)

    def _expand(self, node: yaml.ScalarNode, loc: Loc) -> tuple[str, bool]:
        env = self._env
        if env is None or "$" not in node.value:
            return node.value, False

        def replace(match: re.Match[str]) -> str:
            if match.group() == "$$":
                return "$"
            name = match["name"]
            if name is None:
                self._broken(
                    node, loc, "`${` must go on with a variable's name and `}`; `$$` is a dollar"
                )
                return ""
            if match["default"] is not None:
                return env.get(name) or match["default"][2:]
            if name not in env:
                self._broken(
                    node,
                    loc,
                    f"the environment variable {name} is not set "
                    f"(`${{{name}:-default}}` would give it a default)",
                )
                return ""
            return env[name]

        return _VARIABLE.subn(replace, node.value)[0], _VARIABLE.search(node.value) is not None

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _broken(self, node: yaml.Node, loc: Loc, message: str) -> None:
        self._document.broken.add(loc)
        self._document.mistakes.append(self._place(node).mistake(message, path_text(loc)))
