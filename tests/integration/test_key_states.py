"""States of upstream keys: shared by proxies, shown to the admin, kept while files change."""

import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml
from typer.testing import CliRunner

from proxy.cli.main import app
from proxy.standin import RunningStandIn, Script, rate_limited, unauthorised
from proxy.upstream.config import KeySecret
from tests.integration.contract import chat, error_of, metrics, post
from tests.integration.processes import ServedProxy
from tests.integration.purges import ADMIN, ADMIN_KEY
from tests.integration.redis_server import RedisServer
from tests.integration.servers import ProxyFactory, RunningProxy, merged
from tests.unit.runtime.test_key_files import Mounted
from tests.waiting import eventually

A, B = "sk-first-0123456789", "sk-second-0123456789"
# The promise is a second; what a machine that is busy with other things may add.
WITHIN_SECONDS = 1.0 + 1.5


def settings(*keys: Any, **over: Any) -> dict[str, Any]:
    given = {"clients": "open", "admin": ADMIN, "upstreams": {"openai": {"api_keys": list(keys)}}}
    return merged(given, over)


def keys_of(proxy: RunningProxy | ServedProxy) -> list[dict[str, Any]]:
    """What the admin is told of the keys."""
    answer = httpx.get(
        f"{proxy.url}/admin/keys", headers={"x-admin-key": ADMIN_KEY}, verify=False, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    told: list[dict[str, Any]] = answer.json()["upstreams"]["openai"]
    return told


def states_of(proxy: RunningProxy | ServedProxy) -> list[str]:
    return [key["state"] for key in keys_of(proxy)]


def asked(proxy: RunningProxy | ServedProxy, text: str, **over: Any) -> httpx.Response:
    return post(proxy.base_url, chat(text, **over), key=None)


def used(standin: RunningStandIn) -> list[str]:
    return [request.credential for request in standin.app.requests]


StartPair = Callable[..., tuple[RunningProxy, RunningProxy]]


@pytest.fixture
def pair(proxy: ProxyFactory, redis: RedisServer, tmp_path: Path) -> StartPair:
    """Starts two proxies with the same keys on one store."""

    def start(kind: str, *keys: Any) -> tuple[RunningProxy, RunningProxy]:
        store: dict[str, Any] = {
            "redis": {"tiers": ["memory", "redis"], "redis": {"url": redis.url}},
            "disk": {"tiers": ["memory", "disk"], "disk": {"path": str(tmp_path / "one.sqlite3")}},
        }[kind]
        given = settings(*(keys or (A, B)), store=store)
        return proxy(given), proxy(given)

    return start


@pytest.mark.parametrize("kind", ["redis", "disk"])
def test_B66_a_429_at_one_cools_the_key_at_the_other_within_a_second(
    kind: str, pair: StartPair, standin: RunningStandIn
) -> None:
    one, other = pair(kind)
    standin.app.script(rate_limited("30"), credential=A)
    standin.app.script(unauthorised(), credential=B, times=None)
    asked(one, "first")
    began = time.monotonic()
    eventually(lambda: states_of(other) == ["cooling", "retired"])
    assert time.monotonic() - began < WITHIN_SECONDS
    mine, theirs = keys_of(one), keys_of(other)
    assert [key["reason"] for key in theirs] == ["rate limited", "status 401"]
    for here, there in zip(mine, theirs, strict=True):
        apart = datetime.fromisoformat(there["until"]) - datetime.fromisoformat(here["until"])
        assert abs(apart.total_seconds()) <= 2.0
    before = len(used(standin))
    assert error_of(asked(other, "second"))["code"] == "upstream_keys_exhausted"
    assert len(used(standin)) == before, "the upstream is not asked"


@pytest.mark.parametrize("kind", ["redis", "disk"])
def test_B62_what_one_uses_of_a_limit_is_not_left_for_the_other(
    kind: str, pair: StartPair, standin: RunningStandIn
) -> None:
    one, other = pair(kind, {"value": A, "requests_per_minute": 3})
    for number in range(3):
        assert asked(one, f"q{number}").status_code == 200
    eventually(lambda: keys_of(other)[0]["limits"][0]["left"] == 0)
    assert asked(other, "q4").status_code == 429
    assert len(used(standin)) == 3


def test_B66_without_redis_each_works_alone_and_it_heals(
    pair: StartPair, standin: RunningStandIn, redis: RedisServer
) -> None:
    one, other = pair("redis")
    redis.kill()
    standin.app.script(rate_limited("600"), credential=A)
    for number in range(4):
        assert asked(one, f"alone {number}").status_code == 200
    assert states_of(one) == ["cooling", "available"]
    assert asked(other, "alone too").status_code == 200
    assert states_of(other) == ["available", "available"]
    redis.start()
    eventually(lambda: states_of(other) == ["cooling", "available"])


def test_B66_two_processes_on_one_disk_share_them_and_say_no_secret(
    proxy: ProxyFactory, standin: RunningStandIn, tmp_path: Path
) -> None:
    given = settings(
        A,
        B,
        server={"port": 0},
        upstreams={"openai": {"base_url": standin.base_url}},
        store={"disk": {"path": str(tmp_path / "cache.sqlite3")}},
    )
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(given))
    standin.app.script(unauthorised(), credential=A)
    here = proxy(given)
    with ServedProxy(file) as there:
        assert asked(here, "first").status_code == 200
        began = time.monotonic()
        eventually(lambda: states_of(there) == ["retired", "available"])
        assert time.monotonic() - began < WITHIN_SECONDS
        there.wait_for_line(r"key-[0-9a-f]{8} is retired for \d+ s: status 401, as others found")
        there.terminate()
        assert there.ended() == 0
        for secret in (A, B):
            assert secret not in there.written
    for stored in tmp_path.glob("cache.sqlite3*"):
        assert A.encode() not in stored.read_bytes()


def test_B62_keys_of_a_swapped_secret_are_taken_and_no_request_is_lost(
    proxy: ProxyFactory, standin: RunningStandIn, tmp_path: Path
) -> None:
    mounted = Mounted(tmp_path / "secret", A)
    running = proxy(settings({"file": str(mounted.file)}))
    standin.app.script(Script(hold="rest", hold_after=2), credential=A)
    statuses: list[int] = []
    stop = threading.Event()

    def hold() -> None:
        statuses.append(asked(running, "held", stream=True).status_code)

    def load(worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            statuses.append(asked(running, f"{worker}-{number}").status_code)

    threads = [threading.Thread(target=hold)]
    threads += [threading.Thread(target=load, args=(worker,)) for worker in range(3)]
    threads[0].start()
    standin.app.wait_for_requests(1)[0].holding.wait()
    for thread in threads[1:]:
        thread.start()
    mounted.swap(B)
    eventually(lambda: B in used(standin))
    seen = len(used(standin))
    eventually(lambda: len(used(standin)) > seen + 10)
    stop.set()
    standin.app.gate("rest").set()
    for thread in threads:
        thread.join(20.0)
    assert set(statuses) == {200}
    assert set(used(standin)[seen + 5 :]) == {B}
    (key,) = keys_of(running)
    assert (key["key"], key["in_flight"]) == (KeySecret(B).fingerprint, 0)


def test_B69_the_admin_sees_keys_by_fingerprint_alone(
    proxy: ProxyFactory, standin: RunningStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    running = proxy(settings({"value": A, "requests_per_minute": 5}, B))
    told = (
        ("x-ratelimit-limit-requests", "100"),
        ("x-ratelimit-remaining-requests", "60"),
        ("x-ratelimit-reset-requests", "24s"),
    )
    standin.app.script(Script(headers=told), credential=A)
    standin.app.script(rate_limited("600"), credential=B)
    for number in range(3):
        assert asked(running, f"q{number}").status_code == 200
    refused = httpx.get(f"{running.url}/admin/keys", verify=False, trust_env=False)
    assert refused.status_code == 401
    first, second = keys_of(running)
    assert first["key"] == KeySecret(A).fingerprint
    assert (first["state"], first["until"], first["in_flight"]) == ("available", None, 0)
    assert (first["uses"], first["successes"], first["failures"]) == (3, 3, 0)
    kinds = [(limit["kind"], limit["source"], limit["model"]) for limit in first["limits"]]
    assert kinds == [("requests", "settings", None), ("requests", "answers", "gpt-4o-mini")]
    assert first["limits"][0]["limit"] == 5
    assert first["limits"][0]["left"] == 2
    assert 0.35 < first["headroom"] <= 0.4
    assert (second["state"], second["reason"]) == ("cooling", "rate limited")
    assert second["since"] < second["until"]
    assert (second["uses"], second["failures"]) == (1, 1)
    shown = metrics(running)
    name = f'magic_proxy_upstream_key_headroom{{key="{first["key"]}",upstream="openai"}}'
    assert 0.35 < shown[name] <= 0.4
    for text in (orjson.dumps(keys_of(running)).decode(), refused.text, str(shown), caplog.text):
        assert A not in text
        assert B not in text


def test_B64_a_limit_of_the_settings_is_kept_and_told_of(
    proxy: ProxyFactory, standin: RunningStandIn
) -> None:
    running = proxy(settings({"value": A, "requests_per_minute": 2}))
    assert [asked(running, f"q{number}").status_code for number in range(3)] == [200, 200, 429]
    refused = asked(running, "q4")
    assert error_of(refused)["code"] == "upstream_keys_exhausted"
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert len(used(standin)) == 2
    (key,) = keys_of(running)
    assert (key["state"], key["reason"]) == ("cooling", "its limit is used up")
    assert asked(running, "q0").status_code == 200, "hits go on"


def test_B62_tokens_that_were_billed_count_in_place_of_the_estimate(
    proxy: ProxyFactory, standin: RunningStandIn
) -> None:
    running = proxy(settings({"value": A, "tokens_per_minute": 10_000}))
    answer = asked(running, "short", max_tokens=9_000)
    billed = answer.json()["usage"]["total_tokens"]
    assert keys_of(running)[0]["limits"][0]["left"] == 10_000 - billed
    batch = {"model": "text-embedding-3-small", "input": ["one", "two"]}
    answer = post(running.base_url, batch, path="/embeddings", key=None)
    billed += answer.json()["usage"]["total_tokens"]
    assert keys_of(running)[0]["limits"][0]["left"] == 10_000 - billed


def test_B69_the_command_line_shows_the_keys(proxy: ProxyFactory, standin: RunningStandIn) -> None:
    running = proxy(settings(A, B))
    standin.app.script(rate_limited("600"), credential=A)
    asked(running, "q")
    env = {"MAGIC_PROXY_ADMIN_KEY": ADMIN_KEY, "COLUMNS": "200"}
    shown = CliRunner(env=env).invoke(app, ["keys", "--url", running.url])
    assert shown.exit_code == 0
    heading, first, second = shown.stdout.splitlines()
    assert heading == "openai"
    assert first.split()[:2] == [KeySecret(A).fingerprint, "cooling"]
    assert first.endswith("(rate limited)")
    assert second.split()[:2] == [KeySecret(B).fingerprint, "available"]
    assert A not in shown.stdout
    told = CliRunner(env=env).invoke(app, ["keys", "--url", running.url, "--json"])
    assert orjson.loads(told.stdout)["upstreams"]["openai"] == keys_of(running)
    wrong = CliRunner(env={**env, "MAGIC_PROXY_ADMIN_KEY": "wrong"}).invoke(
        app, ["keys", "--url", running.url]
    )
    assert wrong.exit_code == 2
