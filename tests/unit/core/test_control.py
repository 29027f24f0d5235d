"""Reading `Cache-Control`, whatever its spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.control import NO_CONTROL, ClientControl, client_control, directives, seconds


def control(*values: bytes) -> ClientControl:
    return client_control(tuple((b"cache-control", value) for value in values))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"no-cache", ClientControl(no_cache=True)),
        (b"no-store", ClientControl(no_store=True)),
        (b"only-if-cached", ClientControl(only_if_cached=True)),
        (b"No-Cache ,\tNO-STORE", ClientControl(no_cache=True, no_store=True)),
        (b"no-cache=x", ClientControl(no_cache=True)),
        (b"max-age=60", ClientControl(max_age_seconds=60.0)),
        (b"Max-Age = 60", ClientControl(max_age_seconds=60.0)),
        (b'max-age="60"', ClientControl(max_age_seconds=60.0)),
        (b"max-age=60, max-age=5", ClientControl(max_age_seconds=60.0)),
        (b",, ,no-cache,", ClientControl(no_cache=True)),
        (b"", NO_CONTROL),
        (b"max-stale=5, min-fresh=1, no-transform, private", NO_CONTROL),
        (b"no-cached, xno-store, only-if-cached-maybe", NO_CONTROL),
        (b"=no-cache", NO_CONTROL),
        (b"\xff\xfe no-store", NO_CONTROL),
    ],
)
def test_B13_a_client_s_control(value: bytes, expected: ClientControl) -> None:
    assert control(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"max-age",
        b"max-age=",
        b"max-age=soon",
        b"max-age=-1",
        b"max-age=1.5",
        b"max-age=1e3",
        b"max-age=+5",
        b"max-age=1 2",
        b"max-age=\xb2",  # a digit for str.isdigit, but not for float
    ],
)
def test_B13_a_limit_that_is_no_number_of_seconds_lets_nothing_through(value: bytes) -> None:
    assert control(value) == ClientControl(max_age_seconds=0.0)


def test_B13_several_lines_count_as_one_list() -> None:
    assert control(b"no-cache", b"no-store").passes


def test_B13_other_headers_say_nothing() -> None:
    assert client_control(((b"pragma", b"no-cache"), (b"x-cache-control", b"no-store"))) is (
        NO_CONTROL
    )


@pytest.mark.parametrize(
    ("no_cache", "no_store", "passes"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_B13_only_both_together_pass(no_cache: bool, no_store: bool, passes: bool) -> None:
    assert ClientControl(no_cache=no_cache, no_store=no_store).passes is passes


def test_a_directive_has_its_argument_unquoted() -> None:
    assert directives(' Private="a" , max-age = 3,public') == {
        "private": "a",
        "max-age": "3",
        "public": "",
    }


@given(st.text())
def test_seconds_are_never_negative_whatever_stands_there(argument: str) -> None:
    assert seconds(argument) >= 0.0


@given(st.binary())
def test_B13_no_value_breaks_the_reading(value: bytes) -> None:
    assert control(value).max_age_seconds in {None, 0.0} or b"max-age" in value.lower()
