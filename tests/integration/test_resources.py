"""Over HTTP: GETs that are answered from the cache, and writes that make them out of date."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest

from proxy.access.clients import hash_key
from proxy.engine import sweeping
from proxy.standin import Script
from proxy.standin.script import server_error
from tests.integration.conftest import NewAsker
from tests.integration.contract import Site, cache_status, error_of
from tests.integration.resources import ASSISTANTS, Reader, detail, tells, x_cache
from tests.integration.wire import Wire
from tests.waiting import eventually

ONE = "/assistants/asst_1"


@pytest.fixture(autouse=True)
def unswept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is purged stays until it is read: `absent` is what a sweep makes of it, 2 s later."""
    monkeypatch.setattr(sweeping, "_COLLECT_SECONDS", 3600.0)


@pytest.fixture
def read(ask: NewAsker, site: Site) -> Reader:
    return Reader(ask(ASSISTANTS), site)


def test_a_resource_is_read_from_the_cache_the_second_time(read: Reader, site: Site) -> None:
    site.standin.app.script(tells(1), times=None, path=ONE)
    first, second = read(ONE), read(ONE)
    assert (x_cache(first), x_cache(second)) == ("MISS", "HIT")
    assert first.content == second.content
    assert second.headers["content-type"] == "application/json"
    assert second.headers["x-cache-rule"] == "resource-1"
    assert int(second.headers["age"]) >= 0
    assert "hit" in second.headers["cache-status"]
    assert read.asked(ONE) == 1


def test_models_are_cached_without_a_setting(ask: NewAsker, site: Site) -> None:
    read = Reader(ask(), site)
    for path in ("/models", "/models/gpt-4o-mini"):
        assert [x_cache(read(path)) for _ in range(2)] == ["MISS", "HIT"]
        assert read.asked(path) == 1
    assert read("/models").headers["x-cache-rule"] == "models"


def test_what_no_setting_names_passes_through(read: Reader, site: Site) -> None:
    site.standin.app.script(tells(1), times=None, path="/threads/t")
    for _ in range(2):
        assert "x-cache" not in read("/threads/t").headers
    assert read.asked("/threads/t") == 2


def test_B70_nobody_reads_what_another_credential_could(read: Reader) -> None:
    assert x_cache(read("/models")) == "MISS"
    assert x_cache(read("/models", key="sk-other-reader")) == "MISS"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"params": {"limit": "1"}}, {"params": {"limit": "2"}}),
        ({"headers": {"OpenAI-Organization": "a"}}, {"headers": {"OpenAI-Organization": "b"}}),
        ({"headers": {"OpenAI-Project": "a"}}, {"headers": {"OpenAI-Project": "b"}}),
        ({"headers": {"OpenAI-Beta": "assistants=v1"}}, {"headers": {"OpenAI-Beta": "v2"}}),
    ],
    ids=["query", "account", "project", "vary"],
)
def test_B19_query_account_and_vary_keep_entries_apart(
    read: Reader, site: Site, one: dict[str, Any], other: dict[str, Any]
) -> None:
    site.standin.app.script(tells(1), times=None, path=ONE)
    told = [x_cache(read(ONE, **given)) for given in (one, other, one, other)]
    assert told == ["MISS", "MISS", "HIT", "HIT"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (server_error(404), "status"),
        (Script(body={"error": {"message": "no"}}), "error-body"),
        (Script(body="{", content_type="application/json"), "unparsable"),
        (Script(body="hello", content_type="text/plain"), "content-type"),
        (Script(body="data: {}\n\ndata: [DONE]\n\n", content_type="text/event-stream"),
         "content-type"),
        (Script(body={"x": "y" * 2_000_000}), "too-large"),
    ],
    ids=["404", "error", "broken", "text", "stream", "long"],
)  # fmt: skip
def test_B14_only_whole_good_json_is_kept(
    read: Reader, site: Site, script: Script, why: str
) -> None:
    site.standin.app.script(script, times=2, path=ONE)
    first = read(ONE)
    assert x_cache(first) == "MISS"
    if why != "too-large" and script.content_type != "text/event-stream":
        assert f"not-stored:{why}" in str(detail(first))
    assert read.asked(ONE) == 1
    read(ONE)
    assert read.asked(ONE) == 2
    assert read.asker.stored() == 0


def test_a_list_is_kept_as_well(read: Reader, site: Site) -> None:
    site.standin.app.script(Script(body=[{"id": "a"}]), path="/assistants")
    assert read("/assistants").json() == read("/assistants").json() == [{"id": "a"}]


def test_B13_clients_steer(read: Reader, site: Site) -> None:
    site.standin.app.script(tells(1), times=None, path=ONE)

    def told(control: str) -> str:
        return x_cache(read(ONE, headers={"cache-control": control}))

    missing = read(ONE, headers={"cache-control": "only-if-cached"})
    assert (missing.status_code, error_of(missing)["code"]) == (504, "not_cached")
    assert told("no-store") == "MISS"
    assert told("max-age=60") == "MISS"
    assert told("max-age=60") == "HIT"
    assert told("no-cache") == "MISS"
    assert told("no-cache, no-store") == "BYPASS"
    assert told("only-if-cached") == "HIT"


def test_B40_many_reads_at_once_are_one_upstream_request(read: Reader, site: Site) -> None:
    site.standin.app.script(tells(1, hold="all"), path=ONE)
    with ThreadPoolExecutor(5) as pool:
        reads = [pool.submit(read, ONE) for _ in range(5)]
        in_flight = "magic_proxy_in_flight"
        eventually(lambda: read.asker.counted(in_flight) == 5)
        site.standin.app.gate("all").set()
        answers = [each.result() for each in reads]
    assert {answer.content for answer in answers} == {answers[0].content}
    assert read.asked(ONE) == 1
    assert sum("collapsed" in answer.headers["cache-status"] for answer in answers) == 4


def test_HEAD_is_answered_from_the_stored_GET(read: Reader, site: Site) -> None:
    site.standin.app.script(tells(1), times=None, path=ONE)
    head = read(ONE, "HEAD")
    assert (x_cache(head), head.content) == ("MISS", b"")
    whole = read(ONE)
    assert x_cache(whole) == "HIT"
    head = read(ONE, "HEAD")
    assert (x_cache(head), head.content) == ("HIT", b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert read.asked(ONE) == 1
    with Wire(read.asker.proxy.url) as wire:  # the next answer follows the head at once
        key = {"authorization": f"Bearer {read.asker.key}"}
        wire.request("HEAD", f"/v1{ONE}", headers=key)
        wire.request("GET", f"/v1{ONE}", headers={**key, "connection": "close"})
        assert wire.read_all().count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("range", "bytes=0-1"), ("if-none-match", "*"), ("if-modified-since", "x"),
     ("accept", "text/csv")],
)  # fmt: skip
def test_B60_reads_of_a_part_a_change_or_another_form_pass_through(
    read: Reader, site: Site, name: str, value: str
) -> None:
    site.standin.app.script(tells(1), times=None, path=ONE)
    read(ONE)
    answer = read(ONE, headers={name: value})
    assert "x-cache" not in answer.headers
    assert site.standin.app.requests[-1].header(name) == value


def test_B14_a_part_that_nobody_asked_for_is_not_kept(read: Reader, site: Site) -> None:
    part = tells(1, status=206, headers=(("content-range", "bytes 0-9/20"),))
    site.standin.app.script(part, times=None, path=ONE)
    assert [read(ONE).status_code for _ in range(2)] == [206, 206]
    assert read.asker.stored() == 0


def test_B14_an_answer_is_kept_only_if_the_key_has_all_that_it_varies_on(
    ask: NewAsker, site: Site
) -> None:
    resource = {"paths": ["/v1/assistants/*"], "vary": ["Accept-Language"]}
    read = Reader(ask({"cache_settings": {"resources": [resource]}}), site)
    known, unknown = ONE, "/assistants/asst_2"
    for path, vary in ((known, "Origin, Accept-Language"), (unknown, "Cookie")):
        script = tells(1, headers=(("vary", vary),))
        site.standin.app.script(script, times=None, path=path)
    assert [x_cache(read(known)) for _ in range(2)] == ["MISS", "HIT"]
    assert x_cache(read(known, headers={"accept-language": "cs"})) == "MISS"
    assert "not-stored:vary" in str(detail(read(unknown)))
    assert x_cache(read(unknown)) == "MISS"


@pytest.mark.parametrize(("honors", "told"), [(False, "HIT"), (True, "MISS")])
def test_B13_the_upstreams_cache_control_counts_where_it_is_to(
    ask: NewAsker, site: Site, honors: bool, told: str
) -> None:
    resource = {"paths": ["/v1/assistants/*"], "honor_upstream": honors}
    read = Reader(ask({"cache_settings": {"resources": [resource]}}), site)
    headers = (("cache-control", "private"), ("set-cookie", "session=1"))
    site.standin.app.script(tells(1, headers=headers), times=None, path=ONE)
    assert read(ONE).headers["set-cookie"] == "session=1"
    again = read(ONE)
    assert x_cache(again) == told
    assert ("set-cookie" in again.headers) is honors  # a new answer brings its own


def test_B8_explain_tells_key_rule_and_state_of_a_read(ask: NewAsker, site: Site) -> None:
    resources = [{"paths": ["/v1/assistants/*"]}, {"paths": ["/v1/files/*"], "ttl_seconds": 0}]
    over = {"cache_settings": {"resources": resources}, "admin": {"key_hashes": [hash_key("adm")]}}
    read = Reader(ask(over), site)
    site.standin.app.script(tells(1), times=None, path=ONE)
    admin = {"x-admin-key": "adm", "openai-beta": "v2", "openai-project": "p"}

    def told(target: str, **more: str) -> tuple[int, Any]:
        url = f"{read.asker.proxy.url}/admin/explain"
        headers = {"authorization": f"Bearer {read.asker.key}", **admin, **more}
        answer = httpx.post(
            url, params={"get": target}, headers=headers, verify=False, trust_env=False
        )
        return answer.status_code, answer.json()

    _, before = told(f"/v1{ONE}?x=y")
    assert (before["would_be"], before["reason"], before["rule"]) == (
        "MISS",
        "absent",
        "resource-1",
    )
    answer = read(f"{ONE}?x=y", headers=admin)
    assert cache_status(answer)["key"] == before["digest"]
    _, after = told(f"/v1{ONE}?x=y")
    assert (after["would_be"], after["stored"]["rule"]) == ("HIT", "resource-1")
    assert 0 < after["stored"]["ttl_seconds"] <= 300
    assert after["store_key"] == before["store_key"] != told(f"/v1{ONE}")[1]["store_key"]
    for target, more, reason in (
        ("/v1/threads/t", {}, "no-rule"),
        ("/v1/files/f", {}, "no-rule"),
        (f"/v1{ONE}", {"range": "bytes=0-1"}, "not-cacheable"),
    ):
        _, passing = told(target, **more)
        assert (passing["would_be"], passing["reason"]) == ("BYPASS", reason)
    status, refused = told("/models")
    assert (status, refused["error"]["param"]) == (400, "get")


@pytest.mark.parametrize("status", [401, 403, 429])
def test_B70_readers_with_other_credentials_share_no_refusal(
    read: Reader, site: Site, status: int
) -> None:
    refusal = replace(server_error(status), hold="all")
    site.standin.app.script(refusal, credential="sk-a")
    site.standin.app.script(tells(2), credential="sk-b")
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(read, ONE, key="sk-a")
        site.standin.app.wait_for_requests(1)
        answer = read(ONE, key="sk-b")
        assert (answer.status_code, answer.json()["version"]) == (200, 2)
        site.standin.app.gate("all").set()
        assert refused.result().status_code == status


def test_B40_who_sent_other_headers_does_not_share_an_error_that_blames_the_request(
    read: Reader, site: Site
) -> None:
    site.standin.app.script(replace(server_error(400), hold="all"), path=ONE)
    site.standin.app.script(tells(1), path=ONE)
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(read, ONE)
        site.standin.app.wait_for_requests(1)
        follower = pool.submit(read, ONE, headers={"anthropic-version": "2023-06-01"})
        eventually(lambda: read.asker.counted("magic_proxy_in_flight") == 2)
        site.standin.app.gate("all").set()
        assert bad.result().status_code == 400
        assert follower.result().json()["version"] == 1


def test_B65_an_upstreams_error_comes_through(read: Reader, site: Site) -> None:
    site.standin.app.script(server_error(503), path=ONE)
    answer = read(ONE)
    assert (answer.status_code, x_cache(answer)) == (503, "MISS")
    assert cache_status(answer)["fwd-status"] == 503


def test_B15_a_stale_answer_serves_where_the_upstream_fails(ask: NewAsker, site: Site) -> None:
    resource = {"paths": ["/v1/assistants/*"], "ttl_seconds": 0.001, "stale_if_error_seconds": 600}
    read = Reader(ask({"cache_settings": {"resources": [resource]}}), site)
    site.standin.app.script(tells(1), path=ONE)
    first = read(ONE)
    assert read.asker.stored() == 1
    site.standin.app.script(server_error(503), times=None, path=ONE)
    answer = read(ONE)
    assert (x_cache(answer), answer.content) == ("STALE", first.content)


def test_a_ttl_of_0_leaves_a_path_alone(ask: NewAsker, site: Site) -> None:
    resource = {"paths": ["/v1/models/**", "/v1/models"], "ttl_seconds": 0}
    read = Reader(ask({"cache_settings": {"resources": [resource]}}), site)
    assert ["x-cache" in read("/models").headers for _ in range(2)] == [False, False]


def test_a_cache_that_is_off_leaves_all_alone(ask: NewAsker, site: Site) -> None:
    read = Reader(ask({"cache_settings": {"enabled": False}}), site)
    assert ["x-cache" in read("/models").headers for _ in range(2)] == [False, False]


def test_B72_who_is_not_known_reads_nothing(ask: NewAsker, site: Site) -> None:
    clients = {"clients": [{"name": "a", "key_hashes": ["sha256:" + "0" * 64]}]}
    read = Reader(ask(clients), site)
    answer = read("/models")
    assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
    assert read.asked("/models") == 0


@pytest.mark.parametrize("path", ["/models/..%2ffiles", "/models/%2e%2e/files"])
def test_a_path_out_of_the_root_is_refused(read: Reader, path: str) -> None:
    with Wire(read.asker.proxy.url) as wire:
        wire.request("GET", "/v1" + path, headers={"connection": "close"})
        wire.read_all()
        assert wire.status == 400


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE"])
@pytest.mark.parametrize("written", [ONE, ONE + "/", "/assistants//asst%5F1", ONE + "/cancel"])
def test_a_write_makes_the_resource_and_its_collection_out_of_date_at_once(
    read: Reader, site: Site, method: str, written: str
) -> None:
    script = site.standin.app.script
    for path in (ONE, "/assistants", "/assistants/asst_2"):
        script(tells(1), path=path)
        assert [x_cache(read(path)) for _ in range(2)] == ["MISS", "HIT"]
    script(tells(2), when=lambda request: request.method == method)
    assert read(written, method, json={}).status_code == 200
    for path in (ONE, "/assistants"):
        script(tells(2), path=path)
        answer = read(path)
        assert (x_cache(answer), detail(answer)) == ("MISS", "purged")
        assert answer.json()["version"] == 2
    assert x_cache(read("/assistants/asst_2")) == "HIT"


@pytest.mark.parametrize("status", [400, 404, 409, 429])
def test_a_write_that_was_refused_changes_nothing(read: Reader, site: Site, status: int) -> None:
    site.standin.app.script(tells(1), path=ONE)
    read(ONE)
    site.standin.app.script(server_error(status), when=lambda request: request.method == "POST")
    assert read(ONE, "POST", json={}).status_code == status
    assert x_cache(read(ONE)) == "HIT"


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (Script(status=303, headers=(("location", "/v1/elsewhere"),)), 303),
        (server_error(500), 500),
        (Script(close_before_answer=True), 502),
        (tells(2, hold="for ever"), 504),  # the client's own deadline is over
    ],
    ids=["elsewhere", "failed", "no answer", "given up"],
)
def test_a_write_that_may_have_been_done_makes_its_resource_out_of_date(
    read: Reader, site: Site, script: Script, status: int
) -> None:
    site.standin.app.script(script, times=None, when=lambda request: request.method == "DELETE")
    for path in (ONE, "/assistants"):
        site.standin.app.script(tells(1), times=None, path=path)
        eventually(lambda path=path: x_cache(read(path)) == "HIT")  # type: ignore[misc]
    deadline = {"x-request-timeout": "300ms"} if script.hold else {}
    assert read(ONE, "DELETE", headers=deadline).status_code == status
    assert [detail(read(path)) for path in (ONE, "/assistants")] == ["purged"] * 2


def test_a_deletion_takes_what_lies_below_with_it(read: Reader, site: Site) -> None:
    below = ONE + "/files/file_1"
    for path in (below, "/assistants/asst_2/files"):
        site.standin.app.script(tells(1), path=path)
        read(path)
    site.standin.app.script(tells(2), when=lambda request: request.method == "DELETE")
    assert read(ONE, "DELETE").status_code == 200
    site.standin.app.script(server_error(404), path=below)
    assert read(below).status_code == 404
    assert x_cache(read("/assistants/asst_2/files")) == "HIT"


def test_a_write_by_another_credential_counts_too(read: Reader, site: Site) -> None:
    site.standin.app.script(tells(1), times=None, path=ONE)
    read(ONE)
    site.standin.app.script(tells(2), when=lambda request: request.method == "POST")
    read(ONE, "POST", key="sk-somebody-else", json={})
    assert x_cache(read(ONE)) == "MISS"


def test_an_answer_that_was_under_way_during_a_write_serves_nobody_after_it(
    read: Reader, site: Site
) -> None:
    site.standin.app.script(tells(1, hold="old"), path=ONE)
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(read, ONE)
        site.standin.app.wait_for_requests(1)
        site.standin.app.script(tells(2), when=lambda request: request.method == "POST")
        read(ONE, "POST", json={})
        site.standin.app.script(tells(2), times=None, path=ONE)
        assert read(ONE).json()["version"] == 2
        site.standin.app.gate("old").set()
        assert old.result().json()["version"] == 1
    assert read(ONE).json()["version"] == 2


def test_B54_resources_are_purged_by_endpoint_rule_and_tag(ask: NewAsker, site: Site) -> None:
    read = Reader(ask({"admin": {"key_hashes": [hash_key("adm")]}}), site)
    for purge in ({"endpoint": "resource"}, {"rule": "models"}, {"tag": "resource:/v1/models"}):
        read("/models")
        assert x_cache(read("/models")) == "HIT"
        read.purge(purge, "adm")
        assert detail(read("/models")) == "purged"


def test_B16_usage_inside_a_resource_is_not_billed_again(read: Reader, site: Site) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14}
    site.standin.app.script(Script(body={"id": "x", "usage": usage}), times=None, path=ONE)
    for control in ("", "no-store", "no-cache, no-store"):
        read(ONE, headers={"cache-control": control} if control else None)
    billed = 'magic_proxy_tokens_total{direction="prompt",kind="billed"}'
    assert read.asker.counted(billed) == 0
    assert orjson.loads(read(ONE).content)["usage"] == usage
