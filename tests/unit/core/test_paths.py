"""Field paths: their syntax, and what they take, remove and change."""

import copy
from typing import Any

import pytest

from proxy.core.paths import FieldPath, merge, project, prune, reaches, replace_text


def reach(*paths: str) -> Any:
    """The mask of paths below the member `v`."""
    return merge(FieldPath.parse(path).steps for path in paths)


@pytest.mark.parametrize(
    ("text", "root", "steps"),
    [
        ("messages", "messages", ()),
        ("*", "*", ()),
        ("messages[*]", "messages", (None,)),
        ("messages[*].content", "messages", (None, "content")),
        ("tools[*].function.name", "tools", (None, "function", "name")),
        ("a[*][*].b", "a", (None, None, "b")),
        ('metadata."a.b"', "metadata", ("a.b",)),
        ('"x y"."\\u00e9\\""', "x y", ('é"',)),
        ('a.""', "a", ("",)),
        ("x-1.größe", "x-1", ("größe",)),
    ],
)
def test_B5_a_path_is_read(text: str, root: str, steps: tuple[str | None, ...]) -> None:
    path = FieldPath.parse(text)
    assert (path.root, path.steps, path.text, str(path)) == (root, steps, text, text)
    assert path.takes_all is (text == "*")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 1),
        (".a", 1),
        ("a.", 3),
        ("a..b", 3),
        ("a b", 2),
        ("a[0]", 2),
        ("a[", 2),
        ("a[*", 2),
        ("a[*]b", 5),
        ("[*]", 1),
        ("*.a", 1),
        ("a.*", 3),
        ("**", 1),
        ('"*"', 1),
        ('"a', 1),
        ('"\\x"', 1),
        ("a]", 2),
    ],
)
def test_B5_a_wrong_path_is_refused_with_its_place(text: str, place: int) -> None:
    with pytest.raises(ValueError, match="is not a field path") as caught:
        FieldPath.parse(text)
    assert f"at character {place} " in str(caught.value)


def test_B5_paths_are_equal_by_what_they_reach() -> None:
    assert FieldPath.parse('"a".b') == FieldPath.parse("a.b")
    assert len({FieldPath.parse('"a"'), FieldPath.parse("a")}) == 1


MESSAGES: Any = [
    {"role": "user", "content": "a", "name": "n"},
    {"role": "tool", "content": [{"type": "text", "text": "b"}]},
    {"name": "x"},
]


@pytest.mark.parametrize(
    ("value", "paths", "taken"),
    [
        (MESSAGES, ["v"], MESSAGES),
        (MESSAGES, ["v[*]"], MESSAGES),
        (MESSAGES, ["v[*].role"], [{"role": "user"}, {"role": "tool"}, {}]),
        (
            MESSAGES,
            ["v[*].role", "v[*].content[*].text"],
            [{"role": "user", "content": "a"}, {"role": "tool", "content": [{"text": "b"}]}, {}],
        ),
        (MESSAGES, ["v[*].role", "v"], MESSAGES),
        ({"a": 1}, ["v[*].a"], {"a": 1}),
        ({"a": 1, "b": 2}, ["v.a", "v[*].b"], {"a": 1}),
        ([{"a": 1, "b": 2}], ["v.a", "v[*].b"], [{"b": 2}]),
        ([1, None, "x", [2]], ["v[*].a"], [1, None, "x", [2]]),
        ("text", ["v.a.b"], "text"),
        ({"a": None}, ["v.a.b"], {"a": None}),
        ({"b": 1}, ["v.a"], {}),
        ([], ["v[*].a"], []),
    ],
)
def test_B5_a_projection_keeps_positions_and_strange_shapes(
    value: Any, paths: list[str], taken: Any
) -> None:
    before = copy.deepcopy(value)
    assert project(value, reach(*paths)) == taken
    assert value == before


@pytest.mark.parametrize(
    ("value", "paths", "left"),
    [
        (MESSAGES[:1], ["v[*].name", "v[*].content"], [{"role": "user"}]),
        (MESSAGES[1:2], ["v[*].content[*].type"], [{"role": "tool", "content": [{"text": "b"}]}]),
        ([1, 2], ["v[*]"], []),
        ({"a": {"b": 1, "c": 2}}, ["v.a.b"], {"a": {"c": 2}}),
        ("text", ["v[*].a"], "text"),
        ({"a": "text"}, ["v.a.b"], {"a": "text"}),
        ([[1], {"a": 1}], ["v.a"], [[1], {"a": 1}]),
    ],
)
def test_B5_an_exclusion_removes_only_what_it_reaches(
    value: Any, paths: list[str], left: Any
) -> None:
    before = copy.deepcopy(value)
    assert prune(value, reach(*paths)) == left
    assert value == before


@pytest.mark.parametrize(
    ("value", "path", "expected"),
    [
        ([{"a": 1}], "v[*].a", True),
        ([{"b": 1}], "v[*].a", False),
        ([], "v[*].a", False),
        ([{"b": 1}, 7], "v[*].a", True),
        ({"a": None}, "v.a", True),
        ({}, "v.a", False),
        ({}, "v", True),
        ("text", "v.a", True),
    ],
)
def test_B1_an_empty_shell_is_not_a_value(value: Any, path: str, expected: bool) -> None:
    assert reaches(value, reach(path)) is expected


@pytest.mark.parametrize(
    ("value", "path", "changed"),
    [
        ("abc", "v", "ABC"),
        (["a", ["b", 1, None]], "v", ["A", ["B", 1, None]]),
        (["a", {"b": "c"}], "v", ["A", {"b": "c"}]),
        ([{"a": "x", "b": "y"}], "v[*].a", [{"a": "X", "b": "y"}]),
        ([{"a": ["x", ["y"]]}], "v[*].a", [{"a": ["X", ["Y"]]}]),
        ({"a": "x"}, "v[*].a", {"a": "x"}),
        ([{"a": "x"}], "v.a", [{"a": "x"}]),
        ({"a": 1}, "v.a", {"a": 1}),
        ({"a": 1}, "v.b", {"a": 1}),
    ],
)
def test_B7_a_replacement_reaches_the_strings_at_its_path(
    value: Any, path: str, changed: Any
) -> None:
    before = copy.deepcopy(value)
    assert replace_text(value, FieldPath.parse(path).steps, str.upper) == changed
    assert value == before
