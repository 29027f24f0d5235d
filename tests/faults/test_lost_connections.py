"""Over HTTP: connections to an upstream that are lost while they rest, or as they are used again."""

from collections.abc import Iterator

import pytest

from tests.faults.asking import ask
from tests.faults.fronting import Fronting, LabClock, serving
from tests.faults.kinds import Kind, good, request_of
from tests.faults.lab import Lab
from tests.faults.tcp_proxy import Loss, TcpProxy
from tests.faults.wires import plain

pytestmark = pytest.mark.anyio
ON_USE = "on-use"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as running:
        yield running


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("loss", [Loss.CLOSE, Loss.RESET, ON_USE])
async def test_B68_a_connection_that_was_lost_is_replaced_and_nobody_notices(
    loss: Loss | str, kind: Kind, transport: str, lab: Lab
) -> None:
    name = f"{loss}-{kind}-{transport}"

    url = lab.url(f"{name}-a", lambda call: plain(good(kind, f"a{call}")))
    with TcpProxy(url) as line:
        upstream = {"base_url": line.url, "api_keys": ["a1"], "transport": transport}
        given = {
            "server": {"access_log": False},
            "store": {"tiers": ["memory"]},
            "upstreams": {"up": upstream},
            "clients": "open",
        }
        proxy = Fronting(given, LabClock())
        async with serving([proxy]):
            first = await ask(proxy.url, request_of(kind, "first"), "sk-1")
            if isinstance(loss, Loss):
                line.lose(loss)
            else:
                line.doom()
            second = await ask(proxy.url, request_of(kind, "second"), "sk-1")

    assert (first.status, first.body) == (200, good(kind, "a1").body)
    assert (second.status, second.body) == (200, good(kind, "a2").body)
    assert len(lab.calls[name]) == 2, "each was asked once"
    assert line.accepted == 2
