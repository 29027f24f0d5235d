"""Asking the admin API of a running proxy, for commands that do so."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import urlsplit

import orjson
import typer

from proxy.cli.output import fail
from proxy.settings.checks import is_loopback

URL_VARIABLE: Final = "MAGIC_PROXY_URL"
KEY_VARIABLE: Final = "MAGIC_PROXY_ADMIN_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:8080"

NOT_DONE: Final = 1
BAD_INPUT: Final = 2

_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 600.0  # a dry run looks through all entries
_FIRST_SERVER_ERROR: Final = 500

ProxyUrl: TypeAlias = Annotated[
    str, typer.Option("--url", envvar=URL_VARIABLE, help="Where the proxy listens.")
]
AdminKeyVariable: TypeAlias = Annotated[
    str, typer.Option("--admin-key-env", help="Name of the variable that holds the admin key.")
]


def ask(
    path: str, body: Mapping[str, Any] | None, *, expected: str, url: str, key_variable: str
) -> dict[str, Any]:
    """What the proxy at `url` answers to a POST (a GET without `body`), with `expected` in it.

    Else prints why not, and exits: with 1 where no proxy answers or it failed, with 2 where it
    refused.
    """
    root = url.rstrip("/").removesuffix("/v1")
    status, content = _answer(f"{root}{path}", body, _admin_key(key_variable))
    told = _members(content)
    if expected in told:
        return told
    if "message" not in told:
        raise _gave_up(NOT_DONE, f"what answers at {root} is no magic-proxy (status {status})")
    code = NOT_DONE if status >= _FIRST_SERVER_ERROR else BAD_INPUT
    raise _gave_up(code, str(told["message"]))


def _answer(url: str, body: Mapping[str, Any] | None, key: str) -> tuple[int, bytes]:
    """Status and body of the answer."""
    import httpx  # noqa: PLC0415  # no other command needs it, and it takes 0.1 s

    try:
        response = httpx.request(
            "GET" if body is None else "POST",
            url,
            json=body,
            headers={"x-admin-key": key},
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            # A forward proxy does not reach this machine.
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
        )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
        raise _gave_up(BAD_INPUT, f"{url}: {error}") from None
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _gave_up(NOT_DONE, f"no proxy answers at {url}: {error}") from None
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        message = f"no answer from {url} ({why}): nobody knows whether it was done"
        raise _gave_up(NOT_DONE, message) from None
    return response.status_code, response.content


def _admin_key(variable: str) -> str:
    key = os.environ.get(variable)
    if not key:
        raise _gave_up(BAD_INPUT, f"no admin key: the variable {variable} is not set")
    if not (key.isascii() and key.isprintable()):
        raise _gave_up(BAD_INPUT, f"what stands in {variable} can be no admin key")
    return key


def _members(content: bytes) -> dict[str, Any]:
    """The members of an answer, or of the error in it; none where it is something else."""
    try:
        told = orjson.loads(content)
    except ValueError:
        return {}
    if isinstance(told, dict):
        told = told.get("error", told)
    return told if isinstance(told, dict) else {}


def _gave_up(code: int, message: str) -> typer.Exit:
    fail(message)
    return typer.Exit(code)
