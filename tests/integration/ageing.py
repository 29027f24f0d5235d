"""Proxies whose clock goes when the test says so, and what a client sees of answers that age."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import orjson

from proxy.standin import RunningStandIn
from proxy.standin.record import Recorded
from tests.integration.contract import CHAT_PATH, chat
from tests.integration.hotpath import HotProxy, Starter, SteadyClock
from tests.integration.servers import merged
from tests.waiting import eventually

TTL_SECONDS = 600
RULE: Mapping[str, Any] = {
    "name": "r",
    "model_names": ["*"],
    "include_in_key": ["*"],
    "ttl_seconds": TTL_SECONDS,
}


def rules(**over: Any) -> dict[str, Any]:
    """Settings with one rule, this much different from the plain one."""
    return {"cache_settings": {"rules": [{**RULE, **over}]}}


class Ageing:
    """A client of one proxy in front of the stand-in, and the proxy's clock.

    Its credential is its own, so that it shares no entries with others; what it counts is what has
    happened since it was made.
    """

    def __init__(
        self, proxy: HotProxy, standin: RunningStandIn, clock: SteadyClock, key: str = "sk-1"
    ) -> None:
        self.proxy = proxy
        self.standin = standin
        self.clock = clock
        self.key = key
        self._client = httpx.Client(timeout=30, verify=False, trust_env=False)
        self.settled()
        self._before = self.metrics()

    def ask(
        self, text: str = "Name three rivers.", control: str = "", /, **members: Any
    ) -> httpx.Response:
        """One request, with this `Cache-Control`."""
        headers = {"authorization": f"Bearer {self.key}", "accept-encoding": "identity"}
        if control:
            headers["cache-control"] = control
        url = f"{self.proxy.url}/v1{CHAT_PATH}"
        return self._client.post(url, json=chat(text, **members), headers=headers)

    def calls(self, text: str = "") -> list[Recorded]:
        """What the stand-in was asked of this text, once nothing is on its way there."""
        self.settled()
        return [each for each in list(self.standin.app.requests) if text.encode() in each.body]

    def settled(self) -> None:
        """Return when no upstream request is under way for others, and all is written."""
        names = [f"magic_proxy_{name}" for name in ("flights", "refreshes_in_flight")]
        names.append("magic_proxy_write_queue_entries")

        def is_idle() -> bool:
            counted = self.metrics()
            return not any(counted[name] for name in names)

        eventually(is_idle)

    def metrics(self) -> dict[str, float]:
        """All samples of `/metrics`."""
        lines = self._client.get(f"{self.proxy.url}/metrics").text.splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def counted(self, sample: str) -> float:
        """How much one sample has grown."""
        return self.metrics().get(sample, 0.0) - self._before.get(sample, 0.0)

    def close(self) -> None:
        self._client.close()


class Ages:
    """Starts proxies with one rule each in front of the stand-in, and stops them all.

    One is started for each different settings: its clock has gone on when it is met again.
    """

    def __init__(self, standin: RunningStandIn, directory: Path) -> None:
        self.standin = standin
        self._starter = Starter(standin.base_url, directory)
        self._proxies: dict[bytes, tuple[HotProxy, SteadyClock]] = {}
        self._clients: list[Ageing] = []
        self._clients_before = 0

    def __call__(self, settings: Mapping[str, Any] | None = None, **rule: Any) -> Ageing:
        """A client of the proxy with this rule."""
        whole = merged(rules(**rule), settings or {})
        name = orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)
        if name not in self._proxies:
            clock = SteadyClock()
            self._proxies[name] = self._starter(whole, clock=clock), clock
        return self._client_of(*self._proxies[name], self.standin)

    def own(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        clock: SteadyClock | None = None,
        standin: RunningStandIn | None = None,
        **rule: Any,
    ) -> Ageing:
        """The only client of a proxy that nobody meets again."""
        clock, standin = clock or SteadyClock(), standin or self.standin
        upstream = {"upstreams": {"openai": {"base_url": standin.base_url}}}
        whole = merged(merged(rules(**rule), upstream), settings or {})
        return self._client_of(self._starter(whole, clock=clock), clock, standin)

    def begin(self) -> None:
        """From here on the stand-in has seen nothing, and has no scripts."""
        self.standin.app.reset()
        self._clients_before = len(self._clients)

    def end(self) -> None:
        """Return when nothing is under way that clients since `begin` have started."""
        self.standin.app.reset()  # what is held at a gate goes on
        for each in self._clients[self._clients_before :]:
            with suppress(httpx.ConnectError):  # some are stopped by their tests
                each.settled()

    def _client_of(self, proxy: HotProxy, clock: SteadyClock, standin: RunningStandIn) -> Ageing:
        self._clients.append(Ageing(proxy, standin, clock, f"sk-{len(self._clients):04d}"))
        return self._clients[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.standin.app.reset()  # what is held at a gate goes on
        for each in self._clients:
            each.close()
        proxies = {each.proxy for each in self._clients}
        with ThreadPoolExecutor(8) as stopping:  # each takes its time, and most of it waits
            list(stopping.map(HotProxy.stop, proxies))
        self._starter.__exit__()


def completion_id(answer: httpx.Response) -> str:
    """Which of the upstream's answers this is, in either form."""
    found = re.search(rb'"id":\s*"(chatcmpl-[^"]+)"', answer.content)
    assert found is not None, answer.content
    return found[1].decode()
