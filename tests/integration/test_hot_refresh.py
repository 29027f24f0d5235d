"""A request repeated byte for byte is answered without parsing it, and never out of date."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from proxy.standin import RunningStandIn
from tests.integration.hotpath import Line
from tests.integration.hotpath import request as whole_request
from tests.integration.sdk import CHAT
from tests.integration.servers import ProxyFactory

Ask: TypeAlias = Callable[..., tuple[str, str]]


@pytest.fixture(params=[["memory"], ["memory", "disk"], ["disk"]], ids="+".join)
def ask(
    request: pytest.FixtureRequest, proxy: ProxyFactory, standin: RunningStandIn
) -> Iterator[Ask]:
    """Sends a request with more header lines; `X-Cache`, and the id of the completion."""
    with Line(proxy({"store": {"tiers": request.param}})) as line:

        def one(*lines: str) -> tuple[str, str]:
            reply = line.ask(whole_request(*lines, body=dict(CHAT)))
            return reply.x_cache, reply.json["id"]

        yield one


def test_B13_an_entry_that_a_client_renewed_is_the_one_that_everybody_gets(ask: Ask) -> None:
    _, first = ask()
    assert [ask() for _ in range(3)] == [("HIT", first)] * 3

    told, renewed = ask("cache-control: no-cache")

    assert told == "MISS"
    assert renewed != first
    assert [ask() for _ in range(3)] == [("HIT", renewed)] * 3


def test_B13_a_client_that_wants_a_younger_entry_renews_it_for_all(ask: Ask) -> None:
    _, first = ask()
    assert ask() == ask() == ("HIT", first)

    told, renewed = ask("cache-control: max-age=0")

    assert told == "MISS"
    assert [ask() for _ in range(3)] == [("HIT", renewed)] * 3
