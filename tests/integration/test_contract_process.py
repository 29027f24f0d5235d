"""`magic-proxy serve` as a process: reload, stop, memory, and what it writes."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml
from typer.testing import CliRunner

from proxy.cli.main import app
from proxy.standin import RunningStandIn, Script, rate_limited, unauthorised
from tests.integration.contract import CHAT_PATH, EMBEDDINGS_PATH, cache_status, chat, post
from tests.integration.processes import ServedProxy, json_lines, magic_proxy
from tests.integration.servers import merged
from tests.integration.wire import Wire, unchunked
from tests.waiting import eventually

CHAT = "/v1/chat/completions"


class Serving:
    """Starts served proxies in front of the stand-in, and ends them all."""

    def __init__(self, standin: RunningStandIn, directory: Path) -> None:
        self._standin = standin
        self._directory = directory
        self._running: list[ServedProxy] = []

    def settings(self, over: dict[str, Any]) -> dict[str, Any]:
        plain = {
            "server": {"port": 0, "access_log": False},
            "upstreams": {"openai": {"base_url": self._standin.base_url}},
            "store": {"disk": {"path": str(self._directory / "cache.sqlite3")}},
        }
        return merged(plain, over)

    def __call__(
        self, over: dict[str, Any] | None = None, *, before: str = "", **env: str
    ) -> ServedProxy:
        file = self._directory / f"settings-{len(self._running)}.yaml"
        file.write_text(yaml.safe_dump(self.settings(over or {})))
        self._running.append(ServedProxy(file, env=env, before=before))
        return self._running[-1]

    def stop(self) -> None:
        for each in self._running:
            each.__exit__(None, None, None)


@pytest.fixture
def serve(standin: RunningStandIn, tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(standin, tmp_path)
    yield serving
    serving.stop()


def rule(name: str) -> dict[str, Any]:
    rules = [{"name": name, "model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": 60}]
    return {"cache_settings": {"rules": rules}}


def test_B74_a_reload_takes_effect_without_dropping_what_is_under_way(
    serve: Serving, standin: RunningStandIn
) -> None:
    proxy = serve(rule("before"))
    standin.app.script(Script(hold="rest", hold_after=2))

    with Wire(proxy.url) as wire:
        wire.request("POST", CHAT, chat("streamed", stream=True))
        standin.app.wait_for_requests(1)[0].holding.wait()
        wire.read_until(b"\r\n\r\n", b"data: {")
        proxy.write_settings(serve.settings(rule("after")))
        proxy.reload()
        proxy.wait_for_line("settings reloaded")
        fresh = post(proxy.base_url, chat("asked after"))
        standin.app.gate("rest").set()
        wire.read_until(b"0\r\n\r\n")

    assert fresh.headers["x-cache-rule"] == "after"
    assert wire.head["x-cache-rule"] == ["before"]
    body, ended = unchunked(wire.rest)
    assert ended
    assert body.endswith(b"data: [DONE]\n\n")
    # What was stored under the old settings is found under the new ones.
    hit = post(proxy.base_url, chat("streamed", stream=True), key=None)
    assert hit.headers["x-cache"] == "HIT"
    assert hit.content == body


def test_B74_a_mistake_keeps_the_old_settings_in_force_and_is_told_with_its_place(
    serve: Serving,
) -> None:
    proxy = serve(rule("before"))
    mistakes = [
        ("server:\n  prot: 1\n", ":2:3: server.prot", "no such setting"),
        ("server:\n\tport: 1\n", ":2:1: ", "a tab"),
        ("cache_settings: {}\nserver: {}\nserver: {}\n", ":3:1: server", "stands twice"),
        ("cache_settings:\n  rules:\n    - model_names: [a]\n", ":3:", "is required"),
        ("upstreams:\n  a: {base_url: 'http://x', api_keys: ['${NO_SUCH}']}\n", ":2:", "NO_SUCH"),
    ]
    for text, place, words in mistakes:
        proxy.write_settings(text)
        proxy.reload()
        told = proxy.wait_for_line(f"not reloaded.*{words}").string

        assert orjson.loads(told)["level"] == "error"
        assert f"{proxy.file}{place}" in orjson.loads(told)["message"]
        assert post(proxy.base_url).headers["x-cache-rule"] == "before"
    proxy.write_settings(serve.settings(rule("after")))
    proxy.reload()
    proxy.wait_for_line("settings reloaded")
    assert post(proxy.base_url).headers["x-cache-rule"] == "after"
    assert "Traceback" not in proxy.written


def test_B74_a_certificate_file_that_cannot_be_used_keeps_the_old_settings_too(
    serve: Serving, standin: RunningStandIn, tmp_path: Path
) -> None:
    proxy = serve(rule("before"))
    pem = tmp_path / "ca.pem"
    pem.write_text("no certificate")
    upstream = {"openai": {"base_url": "https://127.0.0.1:1/v1", "ca_file": str(pem)}}

    proxy.write_settings(serve.settings({**rule("after"), "upstreams": upstream}))
    proxy.reload()
    proxy.wait_for_line("not reloaded")

    assert post(proxy.base_url).headers["x-cache-rule"] == "before"
    assert "Traceback" not in proxy.written


def test_B74_a_reload_tells_what_it_can_not_change_and_what_it_can_not_read(
    serve: Serving,
) -> None:
    proxy = serve(rule("before"))
    proxy.write_settings(
        serve.settings({**rule("before"), "store": {"memory": {"max_bytes": 1_000_000}}})
    )
    proxy.reload()
    proxy.wait_for_line("'store'.*next start")

    proxy.file.unlink()
    proxy.reload()
    proxy.wait_for_line("not reloaded.*cannot read")

    assert post(proxy.base_url).headers["x-cache-rule"] == "before"


def test_B44_a_stop_lets_streams_finish_and_writes_what_was_stored(
    serve: Serving, standin: RunningStandIn
) -> None:
    proxy = serve()
    standin.app.script(Script(hold="rest", hold_after=2))

    with Wire(proxy.url) as wire:
        wire.request("POST", CHAT, chat(stream=True))
        standin.app.wait_for_requests(1)[0].holding.wait()
        wire.read_until(b"\r\n\r\n", b"data: {")
        proxy.terminate()
        # It has heard: nobody new gets in.
        eventually(lambda: is_refused(proxy))
        assert proxy.process.poll() is None
        standin.app.gate("rest").set()
        wire.read_until(b"0\r\n\r\n")
        body, ended = unchunked(wire.rest)

    assert ended
    assert body.endswith(b"data: [DONE]\n\n")
    assert proxy.ended() == 0
    assert "Traceback" not in proxy.written
    again = serve()
    hit = post(again.base_url, chat(stream=True), key=None)
    assert (hit.headers["x-cache"], hit.content) == ("HIT", body)


def is_refused(proxy: ServedProxy) -> bool:
    """True once nobody new gets in."""
    host, _, port = proxy.url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except ConnectionError:
        return True
    return False


def test_B44_a_port_that_is_taken_is_an_error(serve: Serving, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(serve.settings({})))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        ended = magic_proxy("serve", "--config", str(file), "--port", port)

    assert ended.returncode == 1
    assert b"Traceback" not in ended.stderr
    assert b"address already in use" in ended.stderr


SECRETS = {
    "client key": "mp-client-8c1f",
    "unknown client key": "mp-wrong-77aa",
    "first upstream key": "sk-upstream-one-51d2",
    "second upstream key": "sk-upstream-two-93be",
    "third upstream key": "sk-upstream-three-7c7c",
    "admin key": "adm-4e07c1",
    "wrong admin key": "adm-wrong-b5b5",
    "upstream header": "hdr-secret-0f0f",
    "upstream query": "qry-secret-6d6d",
    "proxy password": "pw-secret-2a2a",
    "own credential": "sk-own-credential-e3e3",
    "cookie": "cookie-secret-9b9b",
    "prompt": "prompt-secret-d4d4",
    "answer": "answer-secret-c5c5",
}


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
def test_B69_no_secret_is_in_anything_that_the_process_writes_or_answers(
    transport: str, serve: Serving, standin: RunningStandIn
) -> None:
    hashed = {
        name: "sha256:" + hashlib.sha256(SECRETS[name].encode()).hexdigest()
        for name in ("client key", "admin key")
    }
    upstream = {
        "base_url": standin.base_url,
        "api_keys": [
            "${FIRST_KEY}",
            {"value": SECRETS["second upstream key"]},
            SECRETS["third upstream key"],
        ],
        "headers": {"x-tenant-secret": SECRETS["upstream header"]},
        "query": {"sig": SECRETS["upstream query"]},
        "transport": transport,
    }
    dead = {
        "base_url": "http://127.0.0.1:1/v1",
        "http_proxy": f"http://user:{SECRETS['proxy password']}@127.0.0.1:1",
        "api_keys": [SECRETS["second upstream key"]],
        "transport": transport,
    }
    settings = {
        "server": {"access_log": True, "log_level": "debug"},
        "clients": [{"name": "ann", "key_hashes": [hashed["client key"]]}],
        "admin": {"key_hashes": [hashed["admin key"]]},
        "upstreams": {"openai": upstream, "dead": dead},
        "default_upstream": "openai",
        "models": {"lost": {"upstream": "dead"}},
    }
    proxy = serve(settings, FIRST_KEY=SECRETS["first upstream key"])
    told = _mixed_session(proxy, standin)
    proxy.write_settings(yaml.safe_dump(serve.settings(settings)).replace("sig:", "sig: ["))
    proxy.reload()
    proxy.wait_for_line("not reloaded")
    proxy.write_settings(serve.settings({**settings, "server": {"access_log": False}}))
    proxy.reload()
    proxy.wait_for_line("settings reloaded")
    proxy.terminate()
    assert proxy.ended() == 0

    lines = [line for line in json_lines(proxy.out) if line["event"] == "request"]
    assert {line["cache"] for line in lines} == {"HIT", "MISS", "BYPASS", "ERROR"}
    written = proxy.written
    for what, secret in SECRETS.items():
        assert secret not in written, f"the {what} is in the log"
        shown = told if what not in {"answer", "prompt"} else ""
        assert secret not in shown, f"the {what} is in an answer"
    assert "__cf_bm" not in written, "a cookie of the upstream is in the log"
    for digest in hashed.values():
        assert digest.removeprefix("sha256:") not in written + told
    assert "key-" in told, "keys are named by a fingerprint"


def _mixed_session(proxy: ServedProxy, standin: RunningStandIn) -> str:
    """All that clients are told while everything happens; questions and answers left out."""
    standin.app.script(rate_limited(), credential=SECRETS["first upstream key"])
    standin.app.script(unauthorised(), credential=SECRETS["second upstream key"])
    for each in ("first", "second", "third"):
        used = SECRETS[f"{each} upstream key"]
        error = Script(status=404, body={"error": {"message": f"Who is {used}?"}})
        standin.app.script(error, credential=used, path="/echo", times=None)
    key, question = SECRETS["client key"], SECRETS["prompt"]
    standin.app.script(Script(content=SECRETS["answer"]), times=None, path="/chat/completions")
    admin = {"x-admin-key": SECRETS["admin key"], "cookie": f"s={SECRETS['cookie']}"}
    both = {**admin, "authorization": f"Bearer {key}"}
    url = proxy.base_url
    answers = [
        post(url, chat(question), key=key),
        post(url, chat(question), key=key),
        post(url, chat(question, stream=True), key=key, headers=admin),
        post(url, chat("other " + question, stream=True), key=key),
        post(url, chat(question, temperature=2), key=key),
        post(url, chat(question, model="lost"), key=key),
        post(url, chat(question, messages=question), key=key),
        post(url, (question + SECRETS["own credential"]).encode(), key=key),
        post(url, chat(question), key=SECRETS["unknown client key"]),
        post(url, chat(question), key=key, headers={"x-api-key": SECRETS["own credential"]}),
        post(url, {"model": "e", "input": question}, path=EMBEDDINGS_PATH, key=key),
        post(url, chat(question), path="/nothing", key=key),
        post(url, chat(question), path="/echo", key=key),
        post(
            url, chat(question), path=CHAT_PATH + "?api_key=" + SECRETS["own credential"], key=key
        ),
        httpx.get(f"{url}/models", headers={"authorization": f"Bearer {key}"}),
        httpx.get(f"{proxy.url}/metrics"),
        httpx.get(f"{proxy.url}/readyz"),
        httpx.get(f"{proxy.url}/{SECRETS['cookie'][:6]}", headers=both),
        httpx.post(f"{proxy.url}/admin/explain", json=chat("plain"), headers=both),
        httpx.post(
            f"{proxy.url}/admin/explain",
            json=chat("plain"),
            headers={"x-admin-key": SECRETS["wrong admin key"]},
        ),
    ]
    standin.app.script(Script(close_before_answer=True))
    answers.append(post(url, chat("broken"), key=key))
    # Bodies hold what the model said, headers and errors are the proxy's own.
    own = [str(answer.headers) for answer in answers]
    own += [answer.text for answer in answers if SECRETS["answer"] not in answer.text]
    return "\n".join(own)


def test_B8_server_command_line_and_explain_name_one_key(
    serve: Serving,
) -> None:
    admin_hash = "sha256:" + hashlib.sha256(b"adm").hexdigest()
    proxy = serve({"admin": {"key_hashes": [admin_hash]}, "cache_settings": {"expose_key": True}})
    body = orjson.dumps(chat("é", temperature=0.0))
    spelled = (
        b'{"temperature":0,"messages":[{"content":"\\u00e9","role":"user"}],"model":"gpt-4o-mini"}'
    )

    served = post(proxy.base_url, body, key="sk-one")
    explained = httpx.post(
        f"{proxy.url}/admin/explain",
        content=spelled,
        headers={"x-admin-key": "adm", "authorization": "Bearer sk-one"},
    ).json()
    common = ["--config", str(proxy.file)]
    auth = ["--header", "Authorization: Bearer sk-one"]
    by_option = CliRunner().invoke(app, ["key", *common, *auth, "--json"], input=spelled)
    by_variable = CliRunner(env={"OPENAI_API_KEY": "sk-one"}).invoke(
        app, ["key", "-", *common], input=body
    )

    digest = cache_status(served)["key"]
    assert explained["digest"] == digest
    assert explained["would_be"] == "HIT"
    assert (by_option.exit_code, by_variable.exit_code) == (0, 0)
    assert orjson.loads(by_option.stdout)["digest"] == digest
    store_key, canonical = by_variable.stdout.splitlines()
    assert store_key == explained["store_key"]
    assert hashlib.sha256(canonical.encode()).hexdigest() == digest
    proxy.terminate()
    assert proxy.ended() == 0
    held = CliRunner().invoke(app, ["explain", *common, *auth, "--json"], input=spelled)
    assert held.exit_code == 0
    assert orjson.loads(held.stdout)["would_be"] == "HIT"


def test_B73_the_process_stays_up_under_a_storm_of_bad_requests(
    serve: Serving, standin: RunningStandIn
) -> None:
    proxy = serve({"server": {"access_log": True}})
    bad = [b"", b"{", b"\xff", b"[" * 100_000, b'{"model":' + b"9" * 5_000 + b"}", b'{"a":NaN}']

    def storm() -> None:
        for body in bad * 5:
            assert post(proxy.base_url, body).status_code == 400

    threads = [threading.Thread(target=storm) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert post(proxy.base_url).status_code == 200
    assert standin.app.count() == 1
    proxy.terminate()
    assert proxy.ended() == 0
    assert "Traceback" not in proxy.written
    assert len([line for line in json_lines(proxy.out) if line["status"] == 400]) == 90
