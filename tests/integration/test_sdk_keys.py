"""The OpenAI SDK through the proxy: a pool of upstream keys, and clients with keys of their own."""

from hashlib import sha256
from typing import Any

import openai
import pytest

from proxy.standin import RunningStandIn, Script, rate_limited, server_error, unauthorised
from tests.integration.conftest import NewClient
from tests.integration.sdk import Told, ask, ask_streamed
from tests.integration.servers import ProxyFactory

POOL: dict[str, Any] = {
    "clients": "open",
    "upstreams": {"openai": {"api_keys": ["sk-good", "sk-limited", "sk-dead"]}},
}


def question(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Question {number}"}]}


def test_B62_B63_clients_see_only_successes_while_one_good_key_is_left(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy(POOL))
    standin.app.script(rate_limited("30"), credential="sk-limited", times=None)
    standin.app.script(unauthorised(), credential="sk-dead", times=None)

    answers: list[Told[Any]] = [ask(sdk, **question(number)) for number in range(6)]
    answers += [ask_streamed(sdk, **question(number)) for number in range(6, 12)]

    assert [answer.x_cache for answer in answers] == ["MISS"] * 12
    used = [request.credential for request in standin.app.requests]
    assert (used.count("sk-good"), used.count("sk-limited"), used.count("sk-dead")) == (12, 1, 1)


def test_B64_with_no_key_left_the_client_gets_429_and_the_soonest_time(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy(POOL))
    standin.app.script(rate_limited("30"), credential="sk-limited", times=None)
    standin.app.script(unauthorised(), credential="sk-dead", times=None)
    standin.app.script(rate_limited("9"), credential="sk-good", times=None)

    refused = []
    for number in range(3):
        with pytest.raises(openai.RateLimitError) as error:
            ask(sdk, **question(number))
        refused.append(error.value)

    assert all(0 < int(each.response.headers["retry-after"]) <= 9 for each in refused)
    assert refused[-1].code == "upstream_keys_exhausted"
    assert standin.app.count() == 3, "a key that cools is left alone"


def test_B69_upstream_keys_are_never_shown(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy(POOL))
    standin.app.script(rate_limited(), times=None)

    with pytest.raises(openai.RateLimitError) as refused:
        ask(sdk)

    shown = refused.value.response.text + str(refused.value.response.headers)
    assert not any(key in shown for key in POOL["upstreams"]["openai"]["api_keys"])


def test_B71_B72_clients_show_keys_of_the_proxy_and_tenants_do_not_share_entries(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    running = proxy(
        {
            "clients": [
                {"name": name, "key_hashes": [f"sha256:{sha256(key.encode()).hexdigest()}"]}
                for name, key in (("ann", "mp-ann"), ("ben", "mp-ben"))
            ],
            "upstreams": {"openai": {"api_keys": ["sk-good"]}},
        }
    )
    ann, ben = client(running, "mp-ann"), client(running, "mp-ben")

    assert [ask(ann).x_cache, ask(ann).x_cache, ask(ben).x_cache] == ["MISS", "HIT", "MISS"]
    with pytest.raises(openai.AuthenticationError) as refused:
        ask(client(running, "mp-nobody"))

    assert refused.value.code == "invalid_api_key"
    assert {request.credential for request in standin.app.requests} == {"sk-good"}


@pytest.mark.parametrize(
    "script", [unauthorised(), rate_limited("30"), server_error()], ids=["401", "429", "500"]
)
def test_B63_what_passes_through_is_tried_with_another_key_as_well(
    script: Script, proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy(POOL))
    standin.app.script(script)
    moderation = {"id": "modr-1", "model": "omni", "results": []}
    standin.app.script(Script(body=moderation), times=None)

    assert sdk.moderations.create(input="Hello.").id == "modr-1"

    assert standin.app.count("/moderations") == 2
    first, second = standin.app.requests
    assert first.body == second.body
    assert first.credential != second.credential
