"""A request repeated byte for byte is answered without parsing it, and never out of date."""

import http.client
import socket
from collections.abc import Iterator

import orjson
import pytest

from proxy.standin import RunningStandIn
from tests.integration.sdk import CHAT
from tests.integration.servers import ProxyFactory, RunningProxy

BODY = orjson.dumps(dict(CHAT))


class Wire:
    """One connection that writes each request in one piece, as few client libraries do."""

    def __init__(self, proxy: RunningProxy) -> None:
        self._socket = socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])))

    def ask(self, *lines: str) -> tuple[str, str]:
        """`X-Cache`, and the id of the completion."""
        head = ["POST /v1/chat/completions HTTP/1.1", "host: proxy", "authorization: Bearer sk-1"]
        head += ["content-type: application/json", f"content-length: {len(BODY)}", *lines]
        self._socket.sendall("\r\n".join([*head, "", ""]).encode() + BODY)
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        told = response.headers["x-cache"], orjson.loads(response.read())["id"]
        response.close()
        return told

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=[["memory"], ["memory", "disk"], ["disk"]], ids="+".join)
def wire(
    request: pytest.FixtureRequest, proxy: ProxyFactory, standin: RunningStandIn
) -> Iterator[Wire]:
    connection = Wire(proxy({"store": {"tiers": request.param}}))
    yield connection
    connection.close()


def test_B13_an_entry_that_a_client_renewed_is_the_one_that_everybody_gets(wire: Wire) -> None:
    _, first = wire.ask()
    assert [wire.ask() for _ in range(3)] == [("HIT", first)] * 3

    told, renewed = wire.ask("cache-control: no-cache")

    assert told == "MISS"
    assert renewed != first
    assert [wire.ask() for _ in range(3)] == [("HIT", renewed)] * 3


def test_B13_a_client_that_wants_a_younger_entry_renews_it_for_all(wire: Wire) -> None:
    _, first = wire.ask()
    assert wire.ask() == wire.ask() == ("HIT", first)

    told, renewed = wire.ask("cache-control: max-age=0")

    assert told == "MISS"
    assert [wire.ask() for _ in range(3)] == [("HIT", renewed)] * 3
