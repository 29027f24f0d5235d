"""`magic-proxy purge` and `event` against a running proxy: what they print, and exit codes (B54)."""

import socket
import threading
from collections.abc import Iterator

import orjson
import pytest
from typer.testing import CliRunner, Result

from proxy.cli.main import app
from tests.integration.contract import Site
from tests.integration.purges import ADMIN_KEY, Operator, settings
from tests.integration.redis_server import free_port

EVENTS = {"project_closed": ["tag:project:{project}", "rule:slow"]}


@pytest.fixture
def operator(site: Site) -> Iterator[Operator]:
    operator = Operator(site.asker(settings(invalidation=EVENTS)).proxy)
    operator.purge(all=True)
    yield operator
    operator.close()


def run(*arguments: str, url: str | None = None, **env: str | None) -> Result:
    plain = {"MAGIC_PROXY_ADMIN_KEY": ADMIN_KEY, "MAGIC_PROXY_URL": url, "COLUMNS": "200"}
    return CliRunner(env={**plain, **env}).invoke(app, list(arguments))


def test_B54_purge_counts_and_purges(operator: Operator) -> None:
    operator.fill("a", {"x-project": "p"})
    operator.count(all=True)
    dry = run("purge", "--tag", "project:p", "--dry-run", url=operator.proxy.url)
    assert (dry.exit_code, dry.stdout) == (0, "1 entries would be purged: tag=project:p\n")
    assert operator.ask("a") == "HIT"
    done = run("purge", "--tag", "project:p", "--url", operator.proxy.base_url)
    assert done.exit_code == 0
    assert done.stdout.startswith("purged: tag=project:p (purge ")
    assert operator.ask("a") == "MISS"


def test_B54_purge_prints_what_the_proxy_answers(operator: Operator) -> None:
    operator.fill("a")
    options = ["--model", "gpt-4o-mini", "--rule", "main", "--endpoint", "chat"]
    more = ["--older-than", "0", "--tenant", "", "--soft", "--json"]
    told = run("purge", *options, *more[:2], "--soft", "--json", url=operator.proxy.url)
    report = orjson.loads(told.stdout)
    assert told.exit_code == 0
    assert report["purged"] == {
        "endpoint": "chat",
        "rule": "main",
        "model": "gpt-4o-mini",
        "older_than_seconds": 0.0,
    }
    assert report["soft"] is True
    assert isinstance(report["number"], int)
    refused = run("purge", *options, *more, url=operator.proxy.url)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "tenant must not be empty" in refused.stderr


def test_B54_everything_has_to_be_said(operator: Operator) -> None:
    operator.fill("a")
    nothing = run("purge", url=operator.proxy.url)
    both = run("purge", "--all", "--tag", "a", url=operator.proxy.url)
    assert (nothing.exit_code, both.exit_code) == (2, 2)
    assert "selects nothing" in nothing.stderr
    assert operator.ask("a") == "HIT"
    soft = run("purge", "--all", "--soft", url=operator.proxy.url)
    assert soft.stdout.startswith("made stale: everything (purge ")
    assert operator.ask("a") == "MISS"


def test_B54_an_event_with_its_context(operator: Operator) -> None:
    operator.fill("a", {"x-project": "p=q"})
    operator.count(all=True)
    context = ["event", "project_closed", "project=p=q"]
    dry = run(*context, "--dry-run", url=operator.proxy.url)
    assert dry.stdout.splitlines() == [
        "1 entries would be purged: tag=project:p=q",
        "0 entries would be purged: rule=slow",
    ]
    done = run(*context, "--json", url=operator.proxy.url)
    assert done.exit_code == 0
    assert [each["purged"] for each in orjson.loads(done.stdout)["purges"]] == [
        {"tag": "project:p=q"},
        {"rule": "slow"},
    ]
    assert operator.ask("a") == "MISS"
    for arguments, words in [
        (["event", "project_closed"], "lacks 'project'"),
        (["event", "a/../b"], "no event 'a/../b'"),
        (["event", "project_closed", "project"], "KEY=VALUE"),
        (["event", "project_closed", "project=a", "project=b"], "twice"),
    ]:
        refused = run(*arguments, url=operator.proxy.url)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert words in refused.stderr


def test_B69_the_admin_key_is_read_from_a_variable_and_never_shown(operator: Operator) -> None:
    named = run("purge", "--all", "--admin-key-env", "MINE", url=operator.proxy.url, MINE=ADMIN_KEY)
    assert named.exit_code == 0
    absent = run("purge", "--all", url=operator.proxy.url, MAGIC_PROXY_ADMIN_KEY=None)
    assert absent.exit_code == 2
    assert "MAGIC_PROXY_ADMIN_KEY is not set" in absent.stderr
    for wrong in ("adm-secret-1", "adm-secret-\xe9", "adm-secret\n"):
        refused = run("purge", "--all", url=operator.proxy.url, MAGIC_PROXY_ADMIN_KEY=wrong)
        assert refused.exit_code == 2
        assert "adm-secret" not in refused.output


@pytest.mark.parametrize("command", [["purge", "--all"], ["event", "project_closed", "project=p"]])
def test_B54_without_a_proxy_the_command_says_so(command: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = run(*command, url=url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"no proxy answers at {url}" in result.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://[", "x"])
def test_B54_a_url_that_can_not_be_asked_is_bad_input(url: str) -> None:
    result = run("purge", "--all", url=url)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "nobody knows whether it was done"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot found", "no magic-proxy"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "no magic-proxy"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "no magic-proxy"),
    ],
    ids=["none", "text", "list", "empty"],
)
def test_B54_another_server_at_that_address_is_told(answer: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        result = run("purge", "--all", url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.join()
    assert result.exit_code == 1
    assert words in result.stderr
