"""Whatever is sent, and however it is cut into reads: with the hot path all is as without it."""

import random
from collections.abc import Iterator, Mapping

import pytest

from proxy.standin import start_standin
from tests.integration.contract import chat
from tests.integration.hotpath import (
    OFF,
    HotProxy,
    Line,
    Starter,
    chunked_request,
    request,
)
from tests.integration.servers import merged

SPELLED = [request(body=request().partition(b"\r\n\r\n")[2] + b" " * n) for n in range(1, 4)]
LONG = request(body=chat("z" * 90_000))
# Nothing here goes upstream anew once it was asked, so that both proxies say the same.
KINDS = (
    request(),
    *SPELLED,
    request(body=chat(stream=True)),
    request("cache-control: only-if-cached", body=chat("Never asked.")),
    request("expect: 100-continue"),
    request(body=b'{"model"'),
    request(target="/v1/nowhere?x=1", body=b""),
    chunked_request(),
    LONG,
    LONG + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: proxy\r\n\r\n",
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, HotProxy]]:
    over = {"server": {"hot_path_request_bytes": 200_000}}
    directory = tmp_path_factory.mktemp("cuts")
    shared = {
        "store": {
            "tiers": ["memory", "disk"],
            "disk": {"path": str(directory / "cache.sqlite3")},
        }
    }
    with start_standin() as standin, Starter(standin.base_url, directory) as start:
        on = start(merged(merged(over, shared), {}))
        off = start(merged(merged(over, shared), OFF))
        for proxy in (off, on):
            with Line(proxy) as line:
                for raw in (request(), LONG):
                    line.ask(raw)
                    proxy.entries_written()
                    line.ask(raw)
        yield {"on": on, "off": off}


def sent(proxy: HotProxy, raws: list[bytes], cuts: list[int]) -> list[tuple[int, bytes]]:
    """Send all in pieces, each when the server has the last one; what was answered, in order."""
    whole = b"".join(raws)
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]
    replies: list[tuple[int, bytes]] = []
    with Line(proxy) as line:
        for piece in pieces:
            # Not awaited: a server that is busy with one request reads no more of the next ones.
            line.send(piece)
        while len(replies) < len(raws):
            reply = line.read()
            if reply.status != 100:
                replies.append((reply.status, reply.body))
    return replies


@pytest.mark.parametrize("seed", range(40))
def test_B10_any_requests_cut_anywhere_are_answered_in_order_and_the_same(
    seed: int, both: Mapping[str, HotProxy]
) -> None:
    chance = random.Random(seed)
    raws = chance.choices(KINDS, k=chance.randint(1, 6))
    size = sum(map(len, raws))
    places = [0]
    for raw in raws:
        places.append(places[-1] + len(raw))
    # At the seams of requests most is decided.
    seams = [place + chance.randint(-3, 3) for place in places[1:-1] if chance.random() < 0.7]
    cuts = sorted(
        {
            cut
            for cut in (*seams, *chance.sample(range(1, size), k=chance.randint(0, 3)))
            if 0 < cut < size
        }
    )

    told = {name: sent(proxy, raws, cuts) for name, proxy in both.items()}

    assert told["on"] == told["off"]
