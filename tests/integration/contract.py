"""Plain HTTP against a proxy, as curl sees it, and readers for what the answers tell."""

import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from proxy.standin import RunningStandIn
from tests.integration.servers import ProxyFactory, RunningProxy, merged
from tests.integration.structured_fields import Bare, Token, parse_list
from tests.waiting import eventually

CHAT_PATH = "/chat/completions"
EMBEDDINGS_PATH = "/embeddings"
_ENTRIES = 'magic_proxy_store_entries{store="disk"}'
Pairs = Mapping[str, str] | Iterable[tuple[str, str]]


def chat(text: str = "Name three rivers.", /, **over: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **over}


def post(
    proxy: RunningProxy | str,
    body: Any = None,
    *,
    path: str = CHAT_PATH,
    headers: Pairs = (),
    key: str | None = "sk-test",
) -> httpx.Response:
    """One POST of a JSON body (or of bytes as they are); httpx adds no codings of its own."""
    base = proxy if isinstance(proxy, str) else proxy.base_url
    content = body if isinstance(body, bytes) else orjson.dumps(chat() if body is None else body)
    given = dict(headers) if isinstance(headers, Mapping) else dict(tuple(headers))
    sent = {"content-type": "application/json", "accept-encoding": "identity", **given}
    if key is not None:
        sent.setdefault("authorization", f"Bearer {key}")
    return httpx.post(
        f"{base}{path}", content=content, headers=sent, timeout=30, verify=False, trust_env=False
    )


def cache_status(response: httpx.Response) -> dict[str, Bare]:
    """The parameters of this cache's own member of `Cache-Status`, strictly parsed."""
    item = parse_list(response.headers["cache-status"])[-1]
    assert item.value == Token("magic-proxy")
    assert isinstance(item.value, Token)
    return item.parameters


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error in an answer, which has to be the OpenAI envelope to the letter."""
    assert response.headers["content-type"].startswith("application/json")
    body = orjson.loads(response.content)
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "Traceback" not in error["message"]
    return error


def metrics(proxy: RunningProxy | str) -> dict[str, float]:
    """All samples of `/metrics`, by name and labels as they are written."""
    url = proxy if isinstance(proxy, str) else proxy.url
    # Asked thousands of times by the tests together; httpx would take five times as long.
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return {
        found[1]: float(found[2])
        for found in re.finditer(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    }


def metric(proxy: RunningProxy | str, sample: str) -> float:
    """One sample, 0 where it was never counted."""
    return metrics(proxy).get(sample, 0.0)


def settled(proxy: RunningProxy) -> dict[str, float]:
    """All samples, once no entry is on its way to a store."""
    eventually(lambda: metric(proxy, "magic_proxy_write_queue_entries") == 0)
    return metrics(proxy)


def entries_stored(proxy: RunningProxy) -> float:
    """How many entries the disk tier holds, once nothing is on its way there."""
    return settled(proxy).get(_ENTRIES, 0.0)


class Asker:
    """One client of a proxy that other tests may use too: its credential is its own.

    Entries are scoped to the credential, so that tests do not meet in the cache; counts are those
    since this asker was made.
    """

    def __init__(self, proxy: RunningProxy, key: str) -> None:
        self.proxy = proxy
        self.key = key
        self._before = settled(proxy)

    def __call__(
        self,
        body: Any = None,
        *,
        path: str = CHAT_PATH,
        headers: Pairs = (),
        key: str | None = None,
    ) -> httpx.Response:
        """One POST."""
        return post(self.proxy, body, path=path, headers=headers, key=key or self.key)

    def counted(self, sample: str) -> float:
        """How much a sample of `/metrics` has grown."""
        return metric(self.proxy, sample) - self._before.get(sample, 0.0)

    def stored(self) -> float:
        """How many entries more the disk tier holds, once nothing is on its way there."""
        return entries_stored(self.proxy) - self._before.get(_ENTRIES, 0.0)


class Site:
    """A stand-in and proxies in front of it, kept for all tests of a module.

    A proxy is started once for each different settings.
    """

    def __init__(self, standin: RunningStandIn, proxies: ProxyFactory) -> None:
        self.standin = standin
        self._proxies = proxies
        self._started: dict[bytes, RunningProxy] = {}
        self._askers = 0

    def asker(self, settings: Mapping[str, Any] | None = None) -> Asker:
        """A client of the proxy with these settings."""
        name = orjson.dumps(settings or {}, option=orjson.OPT_SORT_KEYS)
        if name not in self._started:
            # The tests of a module store so much that a dictionary would be trained at any moment,
            # and be counted among the entries.
            apart = merged({"store": {"dictionaries": False}}, settings or {})
            self._started[name] = self._proxies(apart)
        self._askers += 1
        return Asker(self._started[name], f"sk-{self._askers:04d}")
