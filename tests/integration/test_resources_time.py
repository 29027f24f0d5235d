"""Over HTTP: resources that age, and writes that others hear of."""

from typing import Any

import httpx
import pytest

from proxy.standin import RunningStandIn
from tests.integration.ageing import Ageing, Ages
from tests.integration.resources import tells, x_cache
from tests.integration.servers import ProxyFactory, RunningProxy
from tests.waiting import eventually

ONE = "/v1/assistants/asst_1"
SETTINGS: dict[str, Any] = {
    "cache_settings": {"resources": [{"paths": ["/v1/assistants/*"], "ttl_seconds": 100}]}
}


@pytest.fixture
def client(ageing: Ages) -> Ageing:
    return ageing(SETTINGS)


def read(client: Ageing, control: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {client.key}"}
    if control:
        headers["cache-control"] = control
    return httpx.get(client.proxy.url + ONE, headers=headers, verify=False, trust_env=False)


def test_an_answer_is_fetched_anew_in_the_background_before_its_time_is_over(
    client: Ageing,
) -> None:
    script = client.standin.app.script
    script(tells(1), path=ONE)
    assert x_cache(read(client)) == "MISS"
    client.clock.advance(79)
    assert x_cache(read(client)) == "HIT"
    assert len(client.calls()) == 1
    client.clock.advance(2)
    script(tells(2), path=ONE)
    due = read(client)
    assert (x_cache(due), due.json()["version"]) == ("HIT", 1)
    assert len(client.calls()) == 2
    client.clock.advance(50)  # past the time of the first one
    new = read(client)
    assert (x_cache(new), new.json()["version"]) == ("HIT", 2)
    refreshes = 'magic_proxy_unattended_flights_total{end="stored",purpose="refresh"}'
    assert client.counted(refreshes) == 1


@pytest.mark.parametrize("control", ["no-store", "only-if-cached"])
def test_B13_who_wants_nothing_fetched_has_nothing_fetched(client: Ageing, control: str) -> None:
    client.standin.app.script(tells(1), path=ONE)
    read(client)
    client.clock.advance(90)
    assert x_cache(read(client, control)) == "HIT"
    assert len(client.calls()) == 1


def test_B15_after_its_time_an_answer_is_a_miss(client: Ageing) -> None:
    client.standin.app.script(tells(1), path=ONE)
    read(client)
    client.clock.advance(101)
    client.standin.app.script(tells(2), path=ONE)
    answer = read(client)
    assert (x_cache(answer), answer.json()["version"]) == ("MISS", 2)


@pytest.fixture
def pair(proxy: ProxyFactory) -> list[RunningProxy]:
    """Two proxies on one disk store."""
    first = proxy(SETTINGS)
    second = proxy({**SETTINGS, "store": {"disk": first.settings["store"]["disk"]}})
    return [first, second]


def test_B54_a_write_through_one_replica_counts_at_the_other(
    pair: list[RunningProxy], standin: RunningStandIn
) -> None:
    standin.app.script(tells(1), path=ONE)

    def ask(replica: RunningProxy, method: str = "GET") -> tuple[str, int]:
        answer = httpx.request(
            method, replica.url + ONE, headers={"authorization": "Bearer k"},
            verify=False, trust_env=False,
        )  # fmt: skip
        return answer.headers.get("x-cache", ""), answer.json()["version"]

    assert ask(pair[0]) == ("MISS", 1)
    eventually(lambda: ask(pair[1]) == ("HIT", 1))
    standin.app.script(tells(2), times=None)
    ask(pair[0], "DELETE")
    assert ask(pair[0]) == ("MISS", 2)
    eventually(lambda: ask(pair[1])[1] == 2)
