"""`magic-proxy serve --workers N`: one proxy to whoever uses it."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from proxy.cli.main import app
from proxy.standin import RunningStandIn, Script, rate_limited, start_standin
from tests.integration.contract import chat, metric, metrics
from tests.integration.processes import json_lines
from tests.integration.purges import ADMIN, ADMIN_KEY, RULE
from tests.integration.wire import Wire
from tests.integration.workers import Workers, gone, start_workers
from tests.waiting import eventually

CHAT = "/v1/chat/completions"
HIT, MISS = (
    f'magic_proxy_requests_total{{endpoint="chat",outcome="{word}"}}' for word in ("hit", "miss")
)
RULES: dict[str, Any] = {"admin": ADMIN, "cache_settings": {"rules": [RULE]}}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RunningStandIn]:
    with start_standin() as running:
        yield running


@pytest.fixture(scope="module")
def shared(upstream: RunningStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two workers on one disk store, for all tests that leave them as they are."""
    with start_workers(tmp_path_factory.mktemp("shared"), upstream.base_url, 2, RULES) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def apart(upstream: RunningStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two workers with a memory each, and nothing else."""
    over = {**RULES, "store": "memory"}
    with start_workers(tmp_path_factory.mktemp("apart"), upstream.base_url, 2, over) as proxy:
        yield proxy


@pytest.fixture
def both(shared: Workers) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """One connection to each of them."""
    with shared.client_of(1) as one, shared.client_of(2) as other:
        yield one, other


def ask(client: httpx.Client, text: str, **headers: str) -> str:
    """What the cache made of a chat request."""
    given = {"authorization": "Bearer sk-test", **headers}
    answer = client.post(CHAT, json=chat(text), headers=given)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-cache"])


def test_every_worker_answers_and_finds_what_another_stored(
    shared: Workers, both: tuple[httpx.Client, httpx.Client]
) -> None:
    one, other = both
    # A request's id begins with what each process made up for itself.
    refused = [client.post(CHAT, content=b"{") for client in both]
    makers = {answer.headers["x-request-id"][:16] for answer in refused}

    assert len(shared.pids) == len(set(shared.pids.values())) == len(makers) == 2
    assert ask(one, "shared") == "MISS"
    eventually(lambda: metric(shared.url, "magic_proxy_write_queue_entries") == 0)
    assert ask(other, "shared") == "HIT"


def test_connections_are_spread_over_the_workers(shared: Workers) -> None:
    with ExitStack() as opened:
        makers = []
        for _ in range(20):
            client = opened.enter_context(httpx.Client(base_url=shared.url))
            makers.append(client.post(CHAT, content=b"{").headers["x-request-id"][:16])

    assert len(set(makers)) == 2
    assert min(makers.count(maker) for maker in makers) >= 4


def test_a_scrape_of_any_worker_tells_of_all(
    shared: Workers, both: tuple[httpx.Client, httpx.Client]
) -> None:
    one, other = both
    before = metrics(shared.url)
    ask(one, "counted")
    eventually(lambda: metric(shared.url, "magic_proxy_write_queue_entries") == 0)
    for client, times in ((one, 3), (other, 4)):
        for _ in range(times):
            assert ask(client, "counted") == "HIT"

    scrapes = [client.get("/metrics").text for client in both]
    after = metrics(shared.url)
    assert scrapes[0] == scrapes[1]
    assert after[HIT] - before.get(HIT, 0) == 7
    assert after[MISS] - before.get(MISS, 0) == 1
    seconds = 'magic_proxy_request_seconds_count{endpoint="chat",outcome="hit"}'
    assert after[seconds] == after[HIT]
    assert after["magic_proxy_workers"] == 2
    # One file, and two memories.
    entries = {
        tier: after[f'magic_proxy_store_entries{{store="{tier}"}}'] for tier in ("disk", "memory")
    }
    assert entries["memory"] > entries["disk"] >= 1


def test_B66_the_admin_is_told_what_all_workers_know_of_keys(
    upstream: RunningStandIn, tmp_path: Path
) -> None:
    over = {
        "admin": ADMIN,
        "store": "memory",  # states are not shared
        "clients": "open",
        "upstreams": {"openai": {"base_url": upstream.base_url, "api_keys": ["k1", "k2"]}},
    }
    with (
        start_workers(tmp_path, upstream.base_url, 2, over) as proxy,
        proxy.client_of(1) as one,
        proxy.client_of(2) as other,
    ):
        for number, client in enumerate((one, other)):
            assert ask(client, f"keys-{number}") == "MISS"
        upstream.app.script(rate_limited("600"), credential="k2")
        assert ask(other, "keys-limited") == "MISS"
        headers = {"x-admin-key": ADMIN_KEY}
        answers = [client.get("/admin/keys", headers=headers) for client in (one, other)]
        env = {"MAGIC_PROXY_ADMIN_KEY": ADMIN_KEY, "COLUMNS": "200"}
        shown = CliRunner(env=env).invoke(app, ["keys", "--url", proxy.url]).stdout
    reports = [answer.json() for answer in answers]
    assert reports[0] == reports[1]
    assert reports[0]["workers"] == 2
    first, second = reports[0]["upstreams"]["openai"]
    assert (first["uses"], first["state"]) == (3, "available")
    assert "workers" not in first
    assert (second["uses"], second["failures"], second["state"]) == (1, 1, "cooling")
    assert second["workers"] == {"1": "available", "2": "cooling"}
    assert shown.splitlines()[2].endswith("worker 1: available  worker 2: cooling")


def test_B54_a_purge_through_one_worker_is_in_force_in_all_when_it_is_answered(
    both: tuple[httpx.Client, httpx.Client],
) -> None:
    one, other = both
    for round_ in range(3):
        text = f"purged-{round_}"
        ask(one, text)
        # From the hot table: the third time it is the very same bytes again.
        eventually(lambda text=text: ask(other, text) == "HIT")  # type: ignore[misc]
        assert ask(other, text) == ask(other, text) == "HIT"

        purged = one.post("/admin/purge", json={"all": True}, headers={"x-admin-key": ADMIN_KEY})
        assert purged.status_code == 200
        assert ask(other, text) == "MISS"


def test_B54_a_purge_reaches_workers_whose_store_is_their_own_memory(apart: Workers) -> None:
    apart.wait_for_line("as many caches")
    with apart.client_of(1) as one, apart.client_of(2) as other:
        for client in (one, other):
            assert [ask(client, "a"), ask(client, "a")] == ["MISS", "HIT"]
        model = chat("a")["model"]
        one.post("/admin/purge", json={"model": model}, headers={"x-admin-key": ADMIN_KEY})

        assert [ask(other, "a"), ask(one, "a")] == ["MISS", "MISS"]
        assert [ask(other, "a"), ask(one, "a")] == ["HIT", "HIT"]


def test_a_worker_that_is_killed_is_replaced_and_nothing_that_it_counted_is_lost(
    shared: Workers, both: tuple[httpx.Client, httpx.Client]
) -> None:
    one, _ = both
    for client in both:
        ask(client, "survives")
    before = metrics(shared.url)
    restarts = before["magic_proxy_worker_restarts_total"]

    shared.kill(2)

    for _ in range(5):  # on a connection that was open before
        assert ask(one, "survives") == "HIT"
    after = metrics(shared.url)
    for sample, value in before.items():
        if sample.endswith(("_total", "_count", "_sum")) or "_bucket{" in sample:
            assert after[sample] >= value, sample
    assert after[HIT] == before[HIT] + 5
    assert after["magic_proxy_worker_restarts_total"] == restarts + 1
    assert [line["level"] for line in json_lines(shared.err) if "died" in line["message"]] == [
        "error"
    ]
    with shared.client_of(2) as successor:
        assert ask(successor, "survives") == "HIT"
        assert metrics(shared.url)[HIT] == before[HIT] + 6


def test_a_worker_that_is_told_to_end_finishes_and_is_replaced(shared: Workers) -> None:
    died = sum("died" in line for line in shared.err)
    before = metrics(shared.url)[HIT]

    shared.kill(1, signal.SIGTERM)

    assert sum("died" in line for line in shared.err) == died
    assert metrics(shared.url)[HIT] == before
    assert metrics(shared.url)["magic_proxy_workers"] == 2


def test_B74_a_reload_reaches_all_workers_and_their_successors(apart: Workers) -> None:
    settings = yaml.safe_load(apart.file.read_text())
    settings["cache_settings"]["rules"] = [{**RULE, "name": "after"}]

    def in_force(client: httpx.Client) -> str:
        answer = client.post(CHAT, json=chat("a"), headers={"authorization": "Bearer sk"})
        return str(answer.headers["x-cache-rule"])

    with apart.client_of(1) as one, apart.client_of(2) as other:
        assert [in_force(one), in_force(other)] == ["rule-1", "rule-1"]
        apart.write_settings(settings)
        apart.reload()
        apart.wait_for_line("settings reloaded")
        assert [in_force(one), in_force(other)] == ["after", "after"]

        apart.write_settings("server: {prot: 1}\n")
        apart.reload()
        apart.wait_for_line("not reloaded")
        assert [in_force(one), in_force(other)] == ["after", "after"]
    apart.kill(2)
    with apart.client_of(2) as successor:
        assert in_force(successor) == "after"
    for once in ("settings reloaded", "not reloaded"):
        assert sum(once in line for line in apart.err) == 1


def test_B44_a_stop_lets_the_streams_of_all_workers_finish(
    upstream: RunningStandIn, tmp_path: Path
) -> None:
    upstream.app.reset()
    upstream.app.script(Script(hold="rest", hold_after=2), times=2)
    with start_workers(tmp_path, upstream.base_url, 2, RULES) as proxy:
        streams = []
        clients = [proxy.client_of(number, authorization="Bearer sk") for number in (1, 2)]
        with clients[0] as one, clients[1] as other:
            for number, client in enumerate((one, other), start=1):
                request = client.build_request("POST", CHAT, json=chat(f"{number}", stream=True))
                streams.append(client.send(request, stream=True))
                upstream.app.wait_for_requests(number)[-1].holding.wait()
            proxy.terminate()
            eventually(lambda: refused(proxy.url))
            assert proxy.process.poll() is None
            upstream.app.gate("rest").set()
            bodies = [stream.read() for stream in streams]

        assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies)
        assert proxy.ended() == 0
        assert "Traceback" not in proxy.written
        assert all(gone(pid) for pid in proxy.pids.values())


def refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/readyz", timeout=5)
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:
        return False
    return False


# A request that holds up the loop of the worker that gets it.
HANGING = """
import threading
from proxy.edge import health
async def hanging(_):
    threading.Event().wait()
health.WATCHED = {**health.WATCHED, b"/healthz": hanging}
"""


def test_a_worker_that_hangs_is_replaced_and_none_outlives_a_killed_supervisor(
    upstream: RunningStandIn, tmp_path: Path
) -> None:
    over = {"server": {"worker_timeout_seconds": 2}}
    with start_workers(tmp_path, upstream.base_url, 2, over, before=HANGING) as proxy:
        first = proxy.pids
        with Wire(proxy.url) as wire:
            wire.request("GET", "/healthz")
            silent = proxy.wait_for_line(r"worker (\d) \(pid (\d+)\) has not been heard of for 2 s")
            number, hung = int(silent[1]), int(silent[2])
            assert first[number] == hung
            proxy.wait_for_line("in hanging")
            eventually(lambda: proxy.pids[number] != hung)
        assert gone(hung)
        assert httpx.get(f"{proxy.url}/readyz").status_code == 200

        proxy.process.kill()
        eventually(lambda: all(gone(pid) for pid in proxy.pids.values()))
        assert refused(proxy.url)
