"""All ways from a proxy to an upstream: each transport, with TLS and without."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contract.raw_server import tls_context, write_certificate
from tests.integration.raw_upstream import RawUpstream
from tests.integration.servers import ProxyFactory, RunningProxy, merged


@dataclass(frozen=True)
class Way:
    """A proxy, and the upstream that it asks."""

    proxy: RunningProxy
    upstream: RawUpstream


class Ways:
    """Started once for each way and each settings; all share two upstreams."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.certificate = write_certificate(directory)
        self._upstreams = {
            "http": RawUpstream(),
            "https": RawUpstream(tls_context(self.certificate)),
        }
        for upstream in self._upstreams.values():
            upstream.__enter__()
        self._proxies: dict[str, RunningProxy] = {}
        self._factory = ProxyFactory("http://127.0.0.1:1/v1", directory)

    def __call__(self, name: str, settings: dict[str, Any] | None = None) -> Way:
        """`name` is a transport and a scheme: `aiohttp-https`."""
        transport, _, scheme = name.partition("-")
        upstream = self._upstreams[scheme]
        upstream.reset()
        over = {
            "store": {"tiers": ["memory"]},
            "upstreams": {
                "openai": {
                    "base_url": upstream.root,
                    "transport": transport,
                    "ca_file": str(self.certificate),
                }
            },
        }
        wanted = merged(over, settings or {})
        place = repr((name, wanted))
        if place not in self._proxies:
            self._proxies[place] = self._factory(wanted)
        return Way(self._proxies[place], upstream)

    def stop(self) -> None:
        """Everything."""
        self._factory.stop()
        for upstream in self._upstreams.values():
            upstream.__exit__()


NAMES = ["aiohttp-http", "aiohttp-https", "httpx-http", "httpx-https"]
