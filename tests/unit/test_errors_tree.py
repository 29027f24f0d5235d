"""The error tree: what its docstring promises is what the classes do."""

import importlib
import pkgutil
import re

import pytest

import proxy
from proxy import errors
from proxy.errors import Mistake, ProxyError, RequestError, SettingsError, StoreError

# Never sent to a client.
_WITHIN = (StoreError, SettingsError)


def tree(root: type[ProxyError]) -> list[type[ProxyError]]:
    """`root` and all below it, wherever in the package they are defined."""
    own = [each for each in root.__subclasses__() if each.__module__.startswith("proxy.")]
    return [root, *(each for child in own for each in tree(child))]


for found in pkgutil.walk_packages(proxy.__path__, "proxy."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
EVERY = tree(ProxyError)
SENT = [each for each in EVERY if not issubclass(each, _WITHIN)]
# Name to depth and status, as drawn.
DRAWN = {
    match["name"]: (len(match["indent"]) // 4, int(match["status"]) if match["status"] else None)
    for match in re.finditer(
        r"^(?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: +(?P<status>\d{3}))?(?:  .*)?$",
        (errors.__doc__ or "").partition("\n\n")[2],
        re.MULTILINE,
    )
}


def test_the_docstring_draws_the_whole_tree_and_no_more() -> None:
    assert {each.__name__ for each in EVERY} == DRAWN.keys()
    depths = {each.__name__: len(each.__mro__) - len(ProxyError.__mro__) for each in EVERY}
    assert {name: depth for name, (depth, _) in DRAWN.items()} == depths


@pytest.mark.parametrize("error", SENT[1:], ids=lambda each: each.__name__)
def test_B73_the_docstring_tells_the_status_of_what_clients_see(error: type[ProxyError]) -> None:
    assert DRAWN[error.__name__][1] == error.status


@pytest.mark.parametrize("error", SENT, ids=lambda each: each.__name__)
def test_B73_every_error_has_a_status_a_type_and_words(error: type[ProxyError]) -> None:
    assert 400 <= error.status <= 599
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*_error", error.type)
    assert error.code is None or re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert error.__doc__


@pytest.mark.parametrize(
    "error",
    [each for each in SENT if each not in {ProxyError, RequestError}],
    ids=lambda each: each.__name__,
)
def test_B73_every_error_that_is_raised_has_a_code(error: type[ProxyError]) -> None:
    assert error.code


@pytest.mark.parametrize("error", SENT, ids=lambda each: each.__name__)
def test_B73_the_envelope_is_openais(error: type[ProxyError]) -> None:
    raised = error("It is so.", param="messages[0]")

    assert raised.envelope() == {
        "error": {
            "message": "It is so.",
            "type": error.type,
            "param": "messages[0]",
            "code": error.code,
        }
    }
    assert str(raised) == "It is so."


def test_B73_a_code_of_its_own_and_no_param() -> None:
    raised = RequestError("No.", code="invalid_path")

    assert raised.envelope()["error"]["code"] == raised.error_code == "invalid_path"
    assert raised.envelope()["error"]["param"] is None
    assert raised.retry_after_seconds is None


@pytest.mark.parametrize("error", SENT, ids=lambda each: each.__name__)
def test_B73_clients_are_at_fault_where_the_status_says_so(error: type[ProxyError]) -> None:
    # What the client may mend itself is `invalid_request_error`, as with OpenAI.
    assert (error.type == "invalid_request_error") is issubclass(error, RequestError)


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        (Mistake("Wrong."), "Wrong."),
        (Mistake("Wrong.", path="store.disk"), "store.disk: Wrong."),
        (Mistake("Wrong.", "store", "a.yaml", 3, 7), "a.yaml:3:7: store: Wrong."),
        (Mistake("Wrong.", file="a.yaml", line=3, column=1), "a.yaml:3:1: Wrong."),
        (Mistake("Wrong.", "store", "a.yaml"), "store: Wrong."),
    ],
)
def test_B74_a_mistake_tells_its_place(mistake: Mistake, text: str) -> None:
    assert str(mistake) == text


def test_B74_an_error_of_the_settings_tells_every_mistake() -> None:
    mistakes = [Mistake("One."), Mistake("Two.", "b")]

    error = SettingsError(mistakes)

    assert error.mistakes == mistakes
    assert error.message == str(error) == "One.\nb: Two."
