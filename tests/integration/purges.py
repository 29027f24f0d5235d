"""Purging a running proxy, as an operator does."""

from hashlib import sha256
from typing import Any

import httpx

from tests.integration.contract import Pairs, chat, metric, post
from tests.integration.servers import RunningProxy
from tests.waiting import eventually

ADMIN_KEY = "adm-test"
ADMIN: dict[str, Any] = {"key_hashes": ["sha256:" + sha256(ADMIN_KEY.encode()).hexdigest()]}
RULE: dict[str, Any] = {"model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": 600}
PROJECT = "project:{header.x-project}"


def settings(**over: Any) -> dict[str, Any]:
    """Settings with an admin key, and rules that tag by project and by user."""
    rules = [
        {**RULE, "name": "slow", "model_names": ["slow-*"], "stale_if_error_seconds": 60},
        {**RULE, "name": "main", "tags": [PROJECT, "user:{user}"]},
    ]
    cache = {"tags_header": "X-Cache-Tags", "rules": rules, **over.pop("cache_settings", {})}
    return {"admin": ADMIN, "cache_settings": cache, **over}


class Operator:
    """Somebody with an admin key, who also asks a chat question now and then."""

    def __init__(self, proxy: RunningProxy) -> None:
        self.proxy = proxy
        self._client = httpx.Client(
            base_url=proxy.url,
            headers={"x-admin-key": ADMIN_KEY},
            verify=False,
            trust_env=False,
            timeout=30,
        )

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self._client.request(method, path, **request)

    def purge(self, **members: Any) -> dict[str, Any]:
        """One purge that has to be done; what the proxy says of it."""
        response = self.send("POST", "/admin/purge", json=members)
        assert response.status_code == 200, response.text
        told: dict[str, Any] = response.json()
        return told

    def count(self, **members: Any) -> int:
        """What a purge would take, once all that was asked is stored."""
        eventually(lambda: metric(self.proxy, "magic_proxy_write_queue_entries") == 0)
        matched = self.purge(**members, dry_run=True)["matched"]
        assert isinstance(matched, int)
        return matched

    def ask(self, text: str, headers: Pairs = (), *, key: str = "sk-test", **over: Any) -> str:
        """What the cache made of a chat request: `HIT`, `MISS`, …"""
        response = post(self.proxy, chat(text, **over), headers=headers, key=key)
        assert response.status_code == 200, response.text
        return str(response.headers["x-cache"])

    def fill(self, text: str, headers: Pairs = (), **over: Any) -> None:
        """Have an answer stored."""
        assert self.ask(text, headers, **over) == "MISS"
        assert self.ask(text, headers, **over) == "HIT"

    def close(self) -> None:
        self._client.close()
