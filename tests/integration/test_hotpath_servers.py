"""What the hot path asks of the server that it lives in, and how the application does without it."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.edge.app import Edge, create_app
from proxy.edge.hotpath import ProxyProtocol, hot_protocol, lacking
from proxy.settings.load import load_settings
from proxy.standin import RunningStandIn, serve_in_thread, start_standin
from proxy.workers.server import server_config
from tests.integration.contract import chat
from tests.integration.hotpath import Line, request
from tests.integration.servers import RunningProxy
from tests.integration.switches import switched

SPELLED = request(body=b" " + request(body=chat()).partition(b"\r\n\r\n")[2])


@pytest.fixture(scope="module")
def upstream() -> Iterator[RunningStandIn]:
    with start_standin() as standin:
        yield standin


class Served(RunningProxy):
    """A proxy under a server that is not quite the usual one."""

    def __init__(self, upstream: str, directory: Path, **over: Any) -> None:
        directory.mkdir(exist_ok=True)
        file = directory / "proxy_config.yaml"
        settings = {
            "server": {"port": 0, "access_log": False},
            "upstreams": {"openai": {"base_url": upstream}},
            "store": {"tiers": ["memory"]},
        }
        file.write_text(yaml.safe_dump(settings))
        loaded = load_settings(file, env={})
        self.app: Edge = create_app(loaded)
        config = server_config(self.app, loaded)
        for name, value in over.items():
            setattr(config, name, value)
        self._server = serve_in_thread(config)
        self._port = self._server.port


def told(served: Served) -> list[tuple[int, str]]:
    with Line(served) as line:
        replies = [line.ask(raw) for raw in (request(), request(), request(), SPELLED, request())]
    return [(reply.status, reply.x_cache) for reply in replies]


ANSWERS = [(200, "MISS"), *[(200, "HIT")] * 4]


@pytest.mark.parametrize(
    "protocol", [H11Protocol, HttpToolsProtocol], ids=["h11", "plain-httptools"]
)
def test_B10_the_application_works_under_a_server_that_notes_nothing(
    protocol: type[asyncio.Protocol], upstream: RunningStandIn, tmp_path: Path
) -> None:
    upstream.app.reset()
    with_none = Served(upstream.base_url, tmp_path, http=protocol)
    try:
        assert told(with_none) == ANSWERS
        assert with_none.app.direct is not None
        assert not with_none.app.direct.hot._hot
        assert not with_none.app.direct.heads._heads
    finally:
        with_none.stop()


@pytest.mark.parametrize(
    "over",
    [
        {"date_header": True},
        {"headers": [("server", "mine")]},
        {"access_log": True},
    ],
    ids=["date", "headers", "access-log"],
)
def test_B10_what_the_server_does_for_each_answer_it_does_for_hits_too(
    over: Mapping[str, Any], upstream: RunningStandIn, tmp_path: Path
) -> None:
    """It adds headers, or writes a log of its own: then no hit is answered past it."""
    upstream.app.reset()
    served = Served(upstream.base_url, tmp_path, **over)
    try:
        with Line(served) as line:
            replies = [line.ask(raw) for raw in (request(), request(), request(), SPELLED)]
    finally:
        served.stop()
    assert [reply.x_cache for reply in replies] == ["MISS", "HIT", "HIT", "HIT"]
    if "date_header" in over:
        assert {reply.lines[0][0] for reply in replies} == {"date"}
    if "headers" in over:
        assert {reply["server"] for reply in replies} == {"mine"}


def test_B10_hits_too_are_refused_above_the_server_s_limit(
    upstream: RunningStandIn, tmp_path: Path
) -> None:
    upstream.app.reset()
    served = Served(upstream.base_url, tmp_path, limit_concurrency=2)
    try:
        with Line(served) as line:
            assert [line.ask(raw).status for raw in (request(), request(), request())] == [200] * 3
            # The server closes what it refuses; the silent one stays, and came before.
            with Line(served), Line(served) as other:
                assert other.ask(request()).status == 503
                assert line.ask(request()).status == 503
    finally:
        served.stop()


def test_B10_this_uvicorn_has_what_the_hot_path_needs() -> None:
    assert lacking() == []
    assert issubclass(hot_protocol(None), ProxyProtocol)


@pytest.mark.parametrize("name", ["cycle", "timeout_keep_alive_task"])
def test_B10_where_uvicorn_lacks_something_its_own_protocol_serves(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bare(self: Any) -> None:
        self.transport = None

    monkeypatch.setattr(HttpToolsProtocol, "__init__", bare)

    assert f"HttpToolsProtocol.{name}" in lacking()
    assert hot_protocol(None) is HttpToolsProtocol
    (line,) = caplog.messages
    assert f"HttpToolsProtocol.{name}" in line


def test_B10_a_method_that_is_gone_is_missed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(HttpToolsProtocol, "_unset_keepalive_if_required")
    monkeypatch.delattr(FlowControl, "pause_reading")

    assert {"HttpToolsProtocol._unset_keepalive_if_required", "FlowControl.pause_reading"} <= set(
        lacking()
    )


@pytest.mark.parametrize(("switch", "is_on"), [("off", False), ("OFF", False), ("", True)])
def test_the_servers_of_a_whole_run_can_be_without_it(
    switch: str, is_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOT_PATH", switch)
    file = tmp_path / "proxy_config.yaml"
    file.write_text("upstreams: {openai: {base_url: 'http://127.0.0.1:9'}}")

    settings = load_settings(file, env=switched())

    assert (settings.server.hot_path_bytes > 0) is is_on
