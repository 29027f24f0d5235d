"""Over HTTP: what becomes of an upstream request whose clients go away, or whose proxy is stopped."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.standin import RunningStandIn, Script
from proxy.standin.record import Recorded
from tests.integration.conftest import NewAsker
from tests.integration.contract import CHAT_PATH, Asker, Site, chat, post
from tests.integration.processes import ServedProxy
from tests.integration.test_contract_process import Serving, is_refused
from tests.integration.wire import Wire, unchunked
from tests.waiting import eventually

CHAT = f"/v1{CHAT_PATH}"
# How long an upstream may go on with what nobody wants.
SOON_SECONDS = 1.0


def rule(**over: Any) -> dict[str, Any]:
    plain = {"name": "r", "model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": 600}
    return {"cache_settings": {"rules": [{**plain, **over}]}}


CANCEL = rule(on_disconnect="cancel")


BEFORE = Script(hold="rest")
WITHIN = Script(hold="rest", hold_after=2, split_bytes=40)


@pytest.fixture(params=[BEFORE, WITHIN], ids=["before", "within"])
def held(request: pytest.FixtureRequest, site: Site) -> Iterator[Script]:
    """An answer that is held before its head, or within its body, until the gate is open."""
    script = request.param
    assert isinstance(script, Script)
    yield script
    site.standin.app.reset()


def client_leaves(
    asker: Asker, site: Site, held: Script, /, *headers: tuple[str, str], **members: Any
) -> Recorded:
    """Have a client ask and go away while the answer is held; what the upstream saw."""
    site.standin.app.script(held)
    with Wire(asker.proxy.url) as wire:
        wire.request(
            "POST", CHAT, chat(**members), [("authorization", f"Bearer {asker.key}"), *headers]
        )
        asked = site.standin.app.wait_for_requests(1)[0]
        asked.holding.wait()
        if held.hold_after is not None and members.get("stream"):
            wire.read_until(b"data: {")
    return asked


def unattended(asker: Asker, end: str) -> float:
    sample = f'magic_proxy_unattended_flights_total{{end="{end}",purpose="finish"}}'
    return asker.counted(sample)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B42_by_default_an_answer_under_way_is_finished_and_stored(
    stream: bool, held: Script, ask: NewAsker, site: Site
) -> None:
    running = ask()
    form = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    asked = client_leaves(running, site, held, **form)
    eventually(lambda: running.counted("magic_proxy_in_flight") == 0)
    assert running.counted("magic_proxy_flights") == 1

    site.standin.app.gate("rest").set()
    asked.finished.wait()

    eventually(lambda: unattended(running, "stored") == 1)
    assert not asked.disconnected.is_set()
    hit = running(chat())
    assert hit.headers["x-cache"] == running(chat(**form)).headers["x-cache"] == "HIT"
    assert site.standin.app.count() == 1
    # What it cost is told, though no client was there to be told.
    billed = 'magic_proxy_tokens_total{direction="prompt",kind="billed"}'
    assert running.counted(billed) == hit.json()["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B42_a_rule_can_have_it_cancelled_within_a_second(
    stream: bool, transport: str, held: Script, ask: NewAsker, site: Site
) -> None:
    upstream = {"upstreams": {"openai": {"base_url": site.standin.base_url}}}
    upstream["upstreams"]["openai"]["transport"] = transport
    running = ask({**CANCEL, **upstream})

    asked = client_leaves(running, site, held, stream=stream)

    asked.disconnected.wait(SOON_SECONDS)
    eventually(lambda: unattended(running, "abandoned") == 1)
    assert running.counted("magic_proxy_flights") == 0
    assert running.stored() == 0
    assert running(chat(stream=stream)).headers["x-cache"] == "MISS"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        pytest.param({"cache_settings": {"enabled": False}}, (), id="disabled"),
        pytest.param(rule(model_names=["none"]), (), id="no-rule"),
        pytest.param(None, [("cache-control", "no-cache, no-store")], id="pass"),
        pytest.param(None, [("cache-control", "no-store")], id="no-store"),
    ],
)
def test_B42_what_can_t_become_an_entry_is_given_up_within_a_second(
    settings: dict[str, Any] | None,
    headers: list[tuple[str, str]],
    stream: bool,
    held: Script,
    ask: NewAsker,
    site: Site,
) -> None:
    running = ask(settings)

    asked = client_leaves(running, site, held, *headers, stream=stream)

    asked.disconnected.wait(SOON_SECONDS)
    eventually(lambda: running.counted("magic_proxy_in_flight") == 0)


@pytest.mark.parametrize(("status", "stream"), [(200, False), (200, True), (503, False)])
def test_B42_what_turns_out_not_to_become_an_entry_is_given_up_too(
    status: int, stream: bool, ask: NewAsker, site: Site
) -> None:
    running = ask(rule(ttl_seconds=0 if status == 200 else 600))

    asked = client_leaves(running, site, replace(WITHIN, status=status), stream=stream)

    asked.disconnected.wait(SOON_SECONDS)


@pytest.mark.parametrize("settings", [None, CANCEL], ids=["finish", "cancel"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B41_who_stays_gets_the_whole_answer_when_the_first_one_has_gone(
    stream: bool, settings: dict[str, Any] | None, ask: NewAsker, site: Site
) -> None:
    running = ask(settings)
    site.standin.app.script(Script(hold="rest", hold_after=2 if stream else None))
    headers = [("authorization", f"Bearer {running.key}")]

    with Wire(running.proxy.url) as follower:
        with Wire(running.proxy.url) as leader:
            leader.request("POST", CHAT, chat(stream=stream), headers)
            site.standin.app.wait_for_requests(1)[0].holding.wait()
            follower.request("POST", CHAT, chat(stream=stream), headers)
            eventually(lambda: running.counted("magic_proxy_in_flight") == 2)
            if stream:
                follower.read_until(b"data: {")
        eventually(lambda: running.counted("magic_proxy_in_flight") == 1)
        assert not site.standin.app.requests[0].disconnected.is_set()
        site.standin.app.gate("rest").set()
        if stream:
            follower.read_until(b"0\r\n\r\n")
            body, ended = unchunked(follower.rest)
            assert ended
            assert body.endswith(b"data: [DONE]\n\n")
        else:
            body = follower.read_body()

    assert "collapsed" in follower.head["cache-status"][0]
    hit = running(chat(stream=stream))
    assert (hit.headers["x-cache"], hit.content) == ("HIT", body)
    assert site.standin.app.count() == 1


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B42_with_the_last_of_several_it_is_cancelled(
    stream: bool, ask: NewAsker, site: Site
) -> None:
    running = ask(CANCEL)
    site.standin.app.script(Script(hold="rest", hold_after=2 if stream else None))
    headers = [("authorization", f"Bearer {running.key}")]

    with Wire(running.proxy.url) as first, Wire(running.proxy.url) as second:
        for wire in (first, second):
            wire.request("POST", CHAT, chat(stream=stream), headers)
        (asked,) = site.standin.app.wait_for_requests(1)
        asked.holding.wait()
        eventually(lambda: running.counted("magic_proxy_in_flight") == 2)
        first.close()
        eventually(lambda: running.counted("magic_proxy_in_flight") == 1)
        assert not asked.disconnected.is_set()
        second.close()
        asked.disconnected.wait(SOON_SECONDS)


def test_B42_a_refresh_goes_on_though_its_client_has_gone(ask: NewAsker, site: Site) -> None:
    settings = rule(ttl_seconds=0.05, stale_while_revalidate_seconds=600, on_disconnect="cancel")
    running = ask(settings)
    running()
    site.standin.app.script(Script(hold="rest"))
    eventually(lambda: running().headers["x-cache"] == "STALE")
    asked = site.standin.app.wait_for_requests(2)[1]
    asked.holding.wait()

    # Who takes no stale answer joins it, and leaves: it is the last one to wait for it.
    with Wire(running.proxy.url) as wire:
        headers = [("authorization", f"Bearer {running.key}"), ("cache-control", "max-age=0")]
        wire.request("POST", CHAT, chat(), headers)
        eventually(lambda: running.counted("magic_proxy_in_flight") == 1)
    eventually(lambda: running.counted("magic_proxy_in_flight") == 0)
    site.standin.app.gate("rest").set()

    asked.finished.wait()
    refreshed = 'magic_proxy_unattended_flights_total{end="stored",purpose="refresh"}'
    eventually(lambda: running.counted(refreshed) == 1)


# ---- a stop ----


@pytest.fixture
def serve(standin: RunningStandIn, tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(standin, tmp_path)
    yield serving
    serving.stop()


def nobody_waits(proxy: ServedProxy, standin: RunningStandIn) -> Recorded:
    """Have the only client go away while its answer is held."""
    standin.app.script(Script(hold="rest", hold_after=2))
    with Wire(proxy.url) as wire:
        wire.request("POST", CHAT, chat(stream=True))
        (asked,) = standin.app.wait_for_requests(1)
        asked.holding.wait()
        wire.read_until(b"data: {")
    return asked


def test_B44_a_stop_waits_for_an_answer_that_is_finished_for_nobody_and_stores_it(
    serve: Serving, standin: RunningStandIn
) -> None:
    proxy = serve()
    asked = nobody_waits(proxy, standin)

    proxy.terminate()
    eventually(lambda: is_refused(proxy))
    assert proxy.process.poll() is None
    standin.app.gate("rest").set()

    assert proxy.ended() == 0
    assert not asked.disconnected.is_set()
    assert "Traceback" not in proxy.written
    again = serve()
    assert post(again.base_url, chat(), key=None).headers["x-cache"] == "HIT"
    assert standin.app.count() == 1


def test_B44_a_stop_gives_up_what_nobody_waits_for_after_its_grace(
    serve: Serving, standin: RunningStandIn
) -> None:
    proxy = serve(before="import proxy.runtime.runtime as it; it._LAST_SECONDS = 1.5; ")
    asked = nobody_waits(proxy, standin)
    began = time.monotonic()

    proxy.terminate()

    asked.disconnected.wait(10.0)
    assert proxy.ended() == 0
    assert 1.0 < time.monotonic() - began < 8.0
    assert "Traceback" not in proxy.written
    assert "ERROR" not in proxy.written
