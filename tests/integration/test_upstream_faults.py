"""Over HTTP: upstreams that fail, and the chains, circuits and deadlines that make up for them."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from proxy.standin import Close, Script, server_error
from tests.integration.ageing import TTL_SECONDS, Ages, completion_id
from tests.integration.conftest import NewAsker, NewClient
from tests.integration.contract import Asker, Site, cache_status, chat, error_of, metric
from tests.integration.servers import ProxyFactory
from tests.integration.wire import Wire, unchunked
from tests.waiting import eventually

GONE = "http://127.0.0.1:1/v1"  # nobody's port: the system itself refuses
# It stays open for as long as a test takes.
STIFF: Mapping[str, Any] = {"connect_failures": 2, "open_seconds": 600, "max_open_seconds": 600}
ANOTHER = "/responses"


def state(asker: Asker, upstream: str = "openai") -> str:
    """What `/metrics` says of a circuit, in its one word."""
    states = [
        name
        for name in ("closed", "open", "half-open")
        if metric(
            asker.proxy,
            f'magic_proxy_upstream_circuit_state{{state="{name}",upstream="{upstream}"}}',
        )
    ]
    assert len(states) == 1
    return states[0]


# ---- circuits ----


@pytest.mark.parametrize("path", ["/chat/completions", ANOTHER])
def test_B62_an_upstream_that_is_gone_is_left_alone(path: str, proxy: ProxyFactory) -> None:
    running = Asker(proxy({"upstreams": {"openai": {"base_url": GONE, "circuit": STIFF}}}), "sk-1")
    for _ in range(2):
        assert running(path=path).status_code == 502

    answer = running(path=path)

    assert answer.status_code == 503
    assert 400 < int(answer.headers["retry-after"]) <= 720
    assert answer.headers["x-cache"] == "ERROR"
    error = error_of(answer)
    assert (error["code"], error["type"]) == ("upstream_circuit_open", "upstream_error")
    assert state(running) == "open"
    withheld = 'magic_proxy_upstream_withheld_total{reason="circuit-open",upstream="openai"}'
    assert running.counted(withheld) == 1
    ready = httpx.get(f"{running.proxy.url}/readyz", verify=False, trust_env=False)
    assert (ready.status_code, ready.json()["upstreams"]) == (200, {"openai": "open"})


def test_B62_a_circuit_stays_closed_while_clients_are_at_fault(ask: NewAsker, site: Site) -> None:
    circuit = {"failure_rate": 0.1, "min_calls": 1}
    running = ask({"upstreams": {"openai": {"circuit": circuit}}})
    for status in (400, 401, 404, 422, 429):
        site.standin.app.script(Script(status=status, body={"error": {"message": "no"}}))
        assert running().status_code == status
    assert state(running) == "closed"
    site.standin.app.script(server_error(503))
    assert running().status_code == 503
    assert error_of(running())["code"] == "upstream_circuit_open"


def test_B15_in_an_outage_all_that_is_known_is_answered_and_nobody_is_asked(
    ageing: Ages,
) -> None:
    circuit = {"failure_rate": 1.0, "min_calls": 3, "open_seconds": 500, "max_open_seconds": 500}
    here = ageing({"upstreams": {"openai": {"circuit": circuit}}}, stale_if_error_seconds=3000)
    texts = [f"question {number}" for number in range(20)]
    known = {text: completion_id(here.ask(text)) for text in texts}
    here.clock.advance(TTL_SECONDS)
    here.standin.app.script(server_error(500), times=None)
    for text in texts[:3]:
        assert cache_status(here.ask(text))["detail"] == "stale-if-error:upstream_failing"
    calls = here.standin.app.count()

    answers = {text: here.ask(text) for text in texts * 3}

    assert {answer.headers["x-cache"] for answer in answers.values()} == {"STALE"}
    assert {text: completion_id(answer) for text, answer in answers.items()} == known
    details = {cache_status(answer)["detail"] for answer in answers.values()}
    assert details == {"stale-if-error:upstream_circuit_open"}
    assert here.standin.app.count() == calls
    assert here.ask("not known").status_code == 503


def test_B15_nobody_who_has_a_stale_answer_waits_for_a_probe_that_hangs(ageing: Ages) -> None:
    circuit = {"failure_rate": 1.0, "min_calls": 3, "open_seconds": 100, "max_open_seconds": 500}
    here = ageing.own({"upstreams": {"openai": {"circuit": circuit}}}, stale_if_error_seconds=3000)
    texts = [f"question {number}" for number in range(10)]
    known = {text: completion_id(here.ask(text)) for text in texts}
    here.clock.advance(TTL_SECONDS)
    here.standin.app.script(server_error(500), times=3)
    for text in texts[:3]:
        assert here.ask(text).headers["x-cache"] == "STALE"
    before = here.standin.app.count()
    here.standin.app.script(Script(hold="silence"), times=None)
    here.clock.advance(130)

    # Each of them would wait for the gate, which only opens below.
    answers = {text: here.ask(text) for text in texts * 2}
    here.standin.app.wait_for_requests(before + 1)
    answers |= {text: here.ask(text) for text in texts}

    assert {text: completion_id(answer) for text, answer in answers.items()} == known
    details = {cache_status(answer)["detail"] for answer in answers.values()}
    assert details == {"stale-if-error:upstream_circuit_open"}
    assert here.standin.app.count() == before + 1
    withheld = 'magic_proxy_upstream_withheld_total{reason="circuit-open",upstream="openai"}'
    assert here.counted(withheld) >= len(texts)

    here.standin.app.gate("silence").set()
    closed = 'magic_proxy_upstream_circuit_state{state="closed",upstream="openai"}'
    eventually(lambda: here.metrics().get(closed) == 1.0)
    here.settled()
    assert here.ask(texts[0]).headers["x-cache"] == "HIT", "the probe brought its new answer"
    assert here.ask(texts[1]).headers["x-cache"] == "MISS"


def test_an_sdk_sees_a_circuit_that_is_open_as_a_server_that_is_busy(
    proxy: ProxyFactory, client: NewClient
) -> None:
    sdk = client(proxy({"upstreams": {"openai": {"base_url": GONE, "circuit": STIFF}}}))
    seen: list[openai.APIStatusError] = []
    for _ in range(3):
        with pytest.raises(openai.InternalServerError) as caught:
            sdk.embeddings.create(model="text-embedding-3-small", input="Hello.")
        seen.append(caught.value)
    assert [error.status_code for error in seen] == [502, 502, 503]
    assert seen[-1].code == "upstream_circuit_open"
    assert int(seen[-1].response.headers["retry-after"]) > 0


# ---- chains ----


def chained(site: Site, **cache: Any) -> dict[str, Any]:
    """Two upstreams: `main` falls back on one of the second, `long` and `free` take what `main`
    does not; told apart by their keys."""
    url = site.standin.base_url
    return {
        "clients": "open",
        "upstreams": {
            "openai": {"base_url": url, "api_keys": ["sk-first"], "max_attempts": 3},
            "azure": {"base_url": url, "api_keys": ["sk-second"]},
        },
        "models": {
            "main": {
                "upstream": "openai",
                "model": "gpt-4o",
                "fallbacks": ["backup"],
                "context_window_fallbacks": ["long"],
                "content_policy_fallbacks": ["free"],
            },
            "backup": {"upstream": "azure", "model": "gpt-4o-eu"},
            "long": {"upstream": "azure", "model": "gpt-4.1"},
            "free": {"upstream": "azure", "model": "gpt-4o-free"},
        },
        "cache_settings": {
            **cache,
            "rules": [
                {
                    "name": "r",
                    "model_names": ["main"],
                    "include_in_key": ["*"],
                    "ttl_seconds": 600,
                    "fallback_ttl_seconds": 30,
                }
            ],
        },
    }


def refusal(code: str, status: int = 400) -> Script:
    return Script(status=status, body={"error": {"message": "no", "code": code}})


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("script", "profile", "model"),
    [
        (server_error(500), "backup", "gpt-4o-eu"),
        (refusal("context_length_exceeded"), "long", "gpt-4.1"),
        (refusal("content_filter"), "free", "gpt-4o-free"),
    ],
    ids=["failure", "too-long", "filtered"],
)
def test_B67_whoever_answers_is_told_and_stored_under_the_name_asked_for(
    script: Script, profile: str, model: str, stream: bool, ask: NewAsker, site: Site
) -> None:
    running = ask(chained(site))
    site.standin.app.script(script, credential="sk-first")
    body = chat(f"{profile} {stream}", model="main", stream=stream)

    answer, again = running(body), running(body)

    assert answer.status_code == 200
    assert answer.headers["x-upstream"] == f"azure/{profile}"
    sent = [(seen.credential, seen.json()["model"]) for seen in site.standin.app.requests]
    assert sent == [("sk-first", "gpt-4o"), ("sk-second", model)]
    assert again.headers["x-cache"] == "HIT"
    assert int(str(cache_status(again)["ttl"])) <= 30
    assert "x-upstream" not in again.headers, "nobody was asked"
    labels = f'{{fallback="true",profile="{profile}",upstream="azure"}}'
    assert running.counted(f"magic_proxy_upstream_answers_total{labels}") == 1


@pytest.mark.parametrize("close", list(Close))
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("path", ["/chat/completions", "/embeddings"])
def test_B63_a_plain_answer_that_breaks_off_is_asked_for_along_the_chain(
    path: str, chunked: bool, close: Close, ask: NewAsker, site: Site
) -> None:
    running = ask(chained(site))
    broken = Script(split_bytes=40, close_after=1, close=close, chunked=chunked)
    site.standin.app.script(broken, credential="sk-first", path=path)
    text = f"breaks off: {chunked} {close}"  # others share the store
    inputs = {"model": "main", "input": [text, "two"]}
    body = chat(text, model="main") if path == "/chat/completions" else inputs

    answer, again = running(body, path=path), running(body, path=path)

    assert answer.status_code == 200
    assert answer.headers["x-upstream"] == "azure/backup"
    assert [seen.credential for seen in site.standin.app.requests] == ["sk-first", "sk-second"]
    assert again.headers["x-cache"] == "HIT"
    assert again.content == answer.content


def test_B63_two_models_can_stand_in_for_each_other(ask: NewAsker, site: Site) -> None:
    settings = chained(site)
    settings["models"]["backup"]["fallbacks"] = ["main"]
    running = ask(settings)
    site.standin.app.script(server_error(500), credential="sk-first")
    site.standin.app.script(server_error(500), credential="sk-second")
    site.standin.app.script(server_error(500), credential="sk-second")
    assert running(chat("1", model="main")).status_code == 500, "each is asked once"
    answer = running(chat("2", model="backup"))
    assert (answer.status_code, answer.headers["x-upstream"]) == (200, "openai/main")


def test_the_first_of_a_chain_is_told_too(ask: NewAsker, site: Site) -> None:
    running = ask(chained(site))
    answer = running(chat("plain", model="main"))
    assert answer.headers["x-upstream"] == "openai/main"
    assert running(chat("plain")).headers["x-upstream"] == "openai"
    labels = '{fallback="false",profile="main",upstream="openai"}'
    assert running.counted(f"magic_proxy_upstream_answers_total{labels}") == 1


@pytest.mark.parametrize("shown", [True, False])
def test_an_upstream_s_own_header_is_never_taken_for_it(
    shown: bool, ask: NewAsker, site: Site
) -> None:
    running = ask(chained(site, expose_upstream=shown))
    site.standin.app.script(Script(headers=(("x-upstream", "theirs"),)))
    answer = running(chat("own header", model="main"))
    assert answer.headers.get("x-upstream") == ("openai/main" if shown else None)


def test_B60_what_passes_through_gets_no_header_of_ours(ask: NewAsker, site: Site) -> None:
    running = ask(chained(site))
    site.standin.app.script(Script(headers=(("x-upstream", "theirs"),)), path=ANOTHER)
    assert running({"model": "m"}, path=ANOTHER).headers["x-upstream"] == "theirs"


def test_a_batch_tells_who_answered_too(ask: NewAsker, site: Site) -> None:
    running = ask()
    body = {"model": "text-embedding-3-small", "input": ["one", "two"]}
    assert running(body, path="/embeddings").headers["x-upstream"] == "openai"


def test_B63_a_retry_budget_that_is_spent_passes_the_answer_on(ask: NewAsker, site: Site) -> None:
    settings = {
        "clients": "open",
        "upstreams": {
            "openai": {
                "api_keys": ["sk-a", "sk-b"],
                "retry_budget": {"share": 0, "per_second": 0.1},
                "circuit": False,
            }
        },
    }
    running = ask(settings)
    site.standin.app.script(server_error(503), times=None)
    answers = [running(chat(f"spent {number}")) for number in range(3)]
    assert [answer.status_code for answer in answers] == [503] * 3
    assert site.standin.app.count() == 4
    withheld = 'magic_proxy_upstream_withheld_total{reason="retry-budget",upstream="openai"}'
    assert running.counted(withheld) == 2


# ---- a client's own deadline ----

SOON = {"x-request-timeout": "80ms"}


def test_B68_a_client_that_can_wait_no_longer_gets_a_504_and_the_others_their_answer(
    ask: NewAsker, site: Site
) -> None:
    running = ask()
    body = chat("shared with somebody in a hurry")
    site.standin.app.script(Script(hold="answer"))
    with ThreadPoolExecutor(2) as clients:
        patient = clients.submit(running, body)
        site.standin.app.wait_for_requests(1)[0].holding.wait()

        hasty = running(body, headers=SOON)

        assert hasty.status_code == 504
        assert error_of(hasty)["code"] == "client_deadline"
        assert hasty.headers["x-cache"] == "ERROR"
        assert not site.standin.app.requests[0].disconnected.is_set()
        site.standin.app.gate("answer").set()
        assert patient.result().status_code == 200
    assert running(body).headers["x-cache"] == "HIT"
    assert site.standin.app.count() == 1


def test_B42_the_work_for_a_hasty_client_alone_is_finished_by_default(
    ask: NewAsker, site: Site
) -> None:
    running = ask()
    site.standin.app.script(Script(hold="answer"))
    body = chat("hasty and alone")
    assert running(body, headers=SOON).status_code == 504
    site.standin.app.gate("answer").set()
    site.standin.app.requests[0].finished.wait()
    assert running.stored() == 1
    assert running(body).headers["x-cache"] == "HIT"


def test_B42_or_cancelled_where_a_rule_says_so(ask: NewAsker, site: Site) -> None:
    rule = {
        "name": "r",
        "model_names": ["*"],
        "include_in_key": ["*"],
        "ttl_seconds": 60,
        "on_disconnect": "cancel",
    }
    running = ask({"cache_settings": {"rules": [rule]}})
    site.standin.app.script(Script(hold="never"))
    assert running(chat("hasty"), headers=SOON).status_code == 504
    site.standin.app.requests[0].disconnected.wait(3)


def test_B15_a_stale_answer_is_better_than_none_in_time(ageing: Ages) -> None:
    here = ageing(stale_if_error_seconds=300)
    old = completion_id(here.ask("old"))
    here.clock.advance(TTL_SECONDS)
    here.standin.app.script(Script(hold="never"))
    headers = {"authorization": f"Bearer {here.key}", "accept-encoding": "identity", **SOON}
    url = f"{here.proxy.url}/v1/chat/completions"
    answer = httpx.post(
        url, json=chat("old"), headers=headers, timeout=30, verify=False, trust_env=False
    )
    assert (answer.headers["x-cache"], completion_id(answer)) == ("STALE", old)
    assert cache_status(answer)["detail"] == "stale-if-error:client_deadline"


def test_B68_a_batch_has_the_same_deadline(ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(hold="never"))
    body = {"model": "text-embedding-3-small", "input": ["a hasty one", "another"]}
    answer = running(body, path="/embeddings", headers=SOON)
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "client_deadline"


def test_B68_what_passes_through_has_the_same_deadline(ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(hold="never"))
    answer = running({"model": "m"}, path=ANOTHER, headers=SOON)
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "client_deadline"
    site.standin.app.requests[0].disconnected.wait(3)


@pytest.mark.parametrize("path", ["/chat/completions", ANOTHER])
def test_B21_a_stream_that_takes_longer_breaks_off(path: str, ask: NewAsker, site: Site) -> None:
    running = ask()
    events = "data: {}\n\n" * 9
    slow = Script(body=events, content_type="text/event-stream", split_bytes=9)
    site.standin.app.script(replace(slow, hold="rest", hold_after=2))
    body = chat("a long stream", stream=True)
    headers = {"authorization": f"Bearer {running.key}", "x-request-timeout": "0.4"}
    with Wire(running.proxy.url) as wire:
        wire.request("POST", f"/v1{path}", body, headers)
        wire.read_all()
    assert wire.ended
    sent, ended = unchunked(wire.rest)
    assert sent.startswith(b"data: {}")
    assert not ended
    site.standin.app.gate("rest").set()


def test_the_deadline_was_said_to_the_proxy_alone(ask: NewAsker, site: Site) -> None:
    running = ask()
    told = {"x-request-timeout": "30", "x-stainless-read-timeout": "600"}
    for path in ("/chat/completions", ANOTHER):
        running(chat(path), path=path, headers=told)
    for seen in site.standin.app.requests:
        assert seen.header("x-request-timeout") is None
        assert seen.header("x-stainless-read-timeout") == "600"


@pytest.mark.parametrize("spelled", ["soon", "-1", "0", "1e-9", ""])
def test_a_deadline_that_can_t_be_read_is_none(spelled: str, ask: NewAsker) -> None:
    running = ask()
    assert running(chat(spelled), headers={"x-request-timeout": spelled}).status_code == 200


def test_B68_a_client_can_shorten_the_time_but_not_lengthen_it(ask: NewAsker, site: Site) -> None:
    upstream = {"base_url": site.standin.base_url, "timeouts": {"first_byte_seconds": 0.2}}
    running = ask({"upstreams": {"openai": upstream}})
    site.standin.app.script(Script(hold="never"))
    answer = running(chat("patient"), headers={"x-request-timeout": "3600"})
    assert error_of(answer)["code"] == "upstream_timeout"
