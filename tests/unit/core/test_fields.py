"""Members of a body: what is refused, what is passed over, and how many answers are wanted."""

import pytest

from proxy.core.fields import check_fields, input_count, item_count, model_name
from proxy.core.wire import Endpoint, JsonValue
from proxy.errors import MalformedBody

CHAT, EMBEDDINGS = Endpoint.CHAT, Endpoint.EMBEDDINGS


@pytest.mark.parametrize(
    ("endpoint", "fields", "param", "message"),
    [
        (CHAT, {"model": 4}, "model", "expected a string, but got a number"),
        (CHAT, {"model": None}, "model", "expected a string, but got null"),
        (EMBEDDINGS, {"model": ["m"]}, "model", "expected a string, but got an array"),
        (CHAT, {"messages": "hi"}, "messages", "expected an array of objects, but got a string"),
        (CHAT, {"messages": None}, "messages", "expected an array of objects, but got null"),
        (CHAT, {"messages": {}}, "messages", "expected an array of objects, but got an object"),
        (CHAT, {"messages": [{}, "hi"]}, "messages[1]", "expected an object, but got a string"),
        (CHAT, {"stream": 1}, "stream", "expected a boolean, but got a number"),
        (CHAT, {"stream": "true"}, "stream", "expected a boolean, but got a string"),
        (CHAT, {"stream_options": True}, "stream_options", "an object, but got a boolean"),
        (CHAT, {"stream_options": []}, "stream_options", "an object, but got an array"),
        (EMBEDDINGS, {"input": None}, "input", "a string or an array, but got null"),
        (EMBEDDINGS, {"input": 1.5}, "input", "a string or an array, but got a number"),
        (EMBEDDINGS, {"input": {}}, "input", "a string or an array, but got an object"),
    ],
)
def test_B73_a_member_of_a_wrong_type_is_named(
    endpoint: Endpoint, fields: dict[str, JsonValue], param: str, message: str
) -> None:
    with pytest.raises(MalformedBody) as caught:
        check_fields(endpoint, fields)

    assert (caught.value.param, caught.value.error_code) == (param, "invalid_type")
    assert message in caught.value.message
    assert f"'{param}'" in caught.value.message


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {}),
        (CHAT, {"model": "", "messages": [], "stream": None, "stream_options": None}),
        (CHAT, {"messages": [{"content": 5}], "stream": True, "stream_options": {"x": 1}}),
        (CHAT, {"temperature": "hot", "n": "two", "input": 4}),
        (EMBEDDINGS, {}),
        (EMBEDDINGS, {"input": ""}),
        (EMBEDDINGS, {"input": [{}], "messages": "x", "stream": 1}),
    ],
)
def test_B60_the_rest_is_the_upstream_s_to_judge(
    endpoint: Endpoint, fields: dict[str, JsonValue]
) -> None:
    check_fields(endpoint, fields)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("a", 1),
        ("", 1),
        (["a"], 1),
        (["a", "b", "a"], 3),
        ([1, 2, 3], 1),
        ([1.0, 2], 1),
        ([[1, 2], [3]], 2),
        ([[1, 2]], 1),
        ([], None),
        (None, None),
        ({}, None),
        (7, None),
    ],
)
def test_B34_how_many_vectors_an_input_asks_for(given: JsonValue, count: int | None) -> None:
    assert input_count({"input": given}) == count
    assert item_count(EMBEDDINGS, {"input": given, "n": 9}) == count


def test_B34_without_an_input_nobody_knows() -> None:
    assert input_count({}) is None


@pytest.mark.parametrize(
    ("n", "count"), [(1, 1), (3, 3), (None, None), ("2", None), (True, None), (2.0, None)]
)
def test_B14_how_many_choices_a_chat_asks_for(n: JsonValue, count: int | None) -> None:
    assert item_count(CHAT, {"n": n, "input": ["a", "b"]}) == count


def test_B14_without_n_the_request_does_not_say() -> None:
    assert item_count(CHAT, {}) is None


@pytest.mark.parametrize(("fields", "name"), [({"model": "m"}, "m"), ({}, None)])
def test_the_model_s_name(fields: dict[str, JsonValue], name: str | None) -> None:
    assert model_name(fields) == name
