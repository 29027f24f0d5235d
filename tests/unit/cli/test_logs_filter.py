"""What the server says of a cut that was meant never reaches the log; what was not meant does."""

import asyncio
import logging
import sys

import pytest

from proxy.cli.logs import expected_break


def record(message: str, error: BaseException | None) -> logging.LogRecord:
    info = None
    if error is not None:
        try:
            raise error  # noqa: TRY301  # exception info has to come from a raise
        except BaseException:
            info = sys.exc_info()
    return logging.LogRecord("uvicorn.error", logging.ERROR, "f", 1, message, (), info)


@pytest.mark.parametrize(
    ("message", "error", "logged"),
    [
        ("ASGI callable returned without completing response.", None, False),
        ("Exception in ASGI application\n", asyncio.CancelledError(), False),
        ("Exception in ASGI application\n", ValueError("a bug"), True),
        ("Invalid HTTP request received.", None, True),
    ],
)
def test_B44_only_cuts_that_are_meant_are_silent(
    message: str, error: BaseException | None, logged: bool
) -> None:
    assert expected_break(record(message, error)) is logged
