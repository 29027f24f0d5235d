"""Reads and writes of resources against a proxy, and an upstream's answers for them."""

from collections.abc import Mapping
from typing import Any

import httpx

from proxy.standin import Script
from tests.integration.contract import Asker, Site, cache_status

ASSISTANTS: Mapping[str, Any] = {
    "cache_settings": {"resources": [{"paths": ["/v1/assistants", "/v1/assistants/**"]}]}
}


class Reader:
    """One client of a proxy that reads and writes resources."""

    def __init__(self, asker: Asker, site: Site) -> None:
        self.asker = asker
        self._standin = site.standin.app

    def __call__(
        self,
        path: str,
        method: str = "GET",
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> httpx.Response:
        sent = {"authorization": f"Bearer {key or self.asker.key}", "accept-encoding": "identity"}
        sent |= headers or {}
        url = self.asker.proxy.base_url + path
        return httpx.request(
            method, url, headers=sent, timeout=30, verify=False, trust_env=False, **more
        )

    def purge(self, purge: Mapping[str, Any], admin_key: str) -> None:
        """As an operator."""
        url, headers = f"{self.asker.proxy.url}/admin/purge", {"x-admin-key": admin_key}
        httpx.post(
            url, json=purge, headers=headers, verify=False, trust_env=False
        ).raise_for_status()

    def asked(self, path: str, method: str = "GET") -> int:
        """How often the upstream was asked."""
        return sum(
            request.method == method and request.raw_path.endswith(path)
            for request in list(self._standin.requests)
        )


def tells(version: int, **over: Any) -> Script:
    """An upstream's answer for some resource."""
    return Script(body={"object": "assistant", "id": "asst_1", "version": version}, **over)


def x_cache(answer: httpx.Response) -> str:
    return str(answer.headers["x-cache"])


def detail(answer: httpx.Response) -> object:
    return cache_status(answer).get("detail")
