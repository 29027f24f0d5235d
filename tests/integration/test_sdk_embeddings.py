"""The OpenAI SDK through the proxy: embeddings, which the SDK asks for in base64."""

from typing import Any

import numpy as np
import pytest
from openai.types import Embedding

from proxy.standin import RunningStandIn, Script
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

    assert embed(sdk, input=["cedar"]).x_cache == "MISS"
    assert embed(sdk, input=["birch", "amber"]).x_cache == "HIT", "each input is cached by itself"
    assert embed(sdk, model="text-embedding-3-large").x_cache == "MISS"
    assert embed(sdk, dimensions=8).x_cache == "MISS"
    assert embed(sdk).x_cache == "HIT"


@pytest.mark.parametrize("first", ["base64", "float"])
def test_B33_one_entry_serves_both_encodings(
    first: str, proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    encodings: list[dict[str, Any]] = [{}, {"encoding_format": "float"}]
    if first == "float":
        encodings.reverse()

    stored, other = (embed(sdk, **encoding) for encoding in encodings)

    assert (stored.x_cache, other.x_cache) == ("MISS", "HIT")
    for row, same in zip(stored.value.data, other.value.data, strict=True):
        assert np.array_equal(_float32(row), _float32(same))
    assert other.value.usage == stored.value.usage
    assert standin.app.count() == 1


def _float32(row: Embedding) -> Any:
    return np.array(row.embedding, np.float32)


def test_B14_embeddings_that_are_not_one_for_each_input_are_not_stored(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(Script(drop_items=1))

    short = embed(sdk)

    assert "not-stored:item-count" in short.headers["cache-status"]
    assert embed(sdk).x_cache == "MISS"
