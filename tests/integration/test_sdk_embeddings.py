"""The OpenAI SDK through the proxy: embeddings, which the SDK asks for in base64."""

from typing import Any

import pytest

from proxy.standin import RunningStandIn
from tests.integration.conftest import NewClient
from tests.integration.sdk import embed
from tests.integration.servers import ProxyFactory


@pytest.mark.parametrize(
    "members",
    [
        pytest.param({}, id="strings"),
        pytest.param({"input": "amber"}, id="one-string"),
        pytest.param({"input": [[1, 2, 3], [4]]}, id="token-arrays"),
        pytest.param({"encoding_format": "float"}, id="float"),
        pytest.param({"dimensions": 8}, id="dimensions"),
    ],
)
def test_B12_first_embeddings_call_is_a_miss_and_the_second_a_hit(
    members: dict[str, Any], proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    first, second = embed(sdk, **members), embed(sdk, **members)

    assert (first.x_cache, second.x_cache) == ("MISS", "HIT")
    assert second.cache_status[:2] == ["magic-proxy", "hit"]
    assert second.headers["x-cache-rule"] == "embeddings"
    assert second.value == first.value
    assert first.value.data[0].embedding
    assert standin.app.count("/embeddings") == 1


def test_B4_other_input_model_or_dimensions_are_misses(
    proxy: ProxyFactory, client: NewClient
) -> None:
    sdk = client(proxy())
    embed(sdk)

    assert embed(sdk, input=["birch", "amber"]).x_cache == "MISS"
    assert embed(sdk, model="text-embedding-3-large").x_cache == "MISS"
    assert embed(sdk, dimensions=8).x_cache == "MISS"
    assert embed(sdk).x_cache == "HIT"
