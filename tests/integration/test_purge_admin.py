"""Purging over HTTP: what is purged, what is refused, and who may (B54)."""

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx
import pytest

from proxy.core.tags import normalized_tag
from proxy.standin import Script
from tests.integration.contract import EMBEDDINGS_PATH, Site, chat, error_of, metric, post
from tests.integration.purges import RULE, Operator, settings

EVENTS: dict[str, Any] = {
    "model_updated": ["model:{model}"],
    "project_closed": {
        "targets": ["tag:project:{project}", "event:model_updated"],
        "soft": True,
    },
    "spring_clean": ["older_than:{seconds}"],
}


@pytest.fixture
def operator(site: Site) -> Iterator[Operator]:
    """At a proxy that all tests share; each begins with an empty cache."""
    operator = Operator(site.asker(settings(invalidation=EVENTS)).proxy)
    operator.purge(all=True)
    yield operator
    operator.close()


def stored_key(operator: Operator, text: str) -> str:
    """The full store key of a chat question, as an admin is told."""
    response = operator.send(
        "POST",
        "/admin/explain",
        json=chat(text),
        headers={"authorization": "Bearer sk-test"},
    )
    return str(response.json()["store_key"])


@pytest.mark.parametrize(
    ("members", "left"),
    [
        ({"model": "gpt-4o-mini"}, {"c"}),
        ({"model": "slow-1"}, {"a", "b"}),
        ({"rule": "main"}, {"c"}),
        ({"tag": "project:p"}, {"b", "c"}),
        ({"tag": "user:u"}, {"a", "c"}),
        ({"tag": "extra"}, {"a", "c"}),
        ({"tag": "with space"}, {"a", "c"}),
        ({"tag": "none"}, {"a", "b", "c"}),
        ({"tag": "project:p", "rule": "slow"}, {"a", "b", "c"}),
        ({"endpoint": "chat"}, set()),
        ({"endpoint": "embeddings"}, {"a", "b", "c"}),
        ({"older_than_seconds": 3600}, {"a", "b", "c"}),
        ({"older_than_seconds": 0}, set()),
        ({"all": True}, set()),
    ],
    ids=lambda given: str(sorted(given)),
)
def test_B54_a_purge_takes_what_it_names_and_a_dry_run_counts_it(
    operator: Operator, members: dict[str, Any], left: set[str]
) -> None:
    asked: dict[str, dict[str, Any]] = {
        "a": {"headers": {"x-project": "p"}},
        "b": {"headers": {"x-cache-tags": "extra, with space"}, "user": "u"},
        "c": {"model": "slow-1"},
    }
    for text, request in asked.items():
        operator.fill(text, **request)
    assert operator.count(**members) == 3 - len(left)
    told = operator.purge(**members)
    assert told["purged"] == members
    assert told["dry_run"] is told["soft"] is False
    assert isinstance(told["number"], int)
    hits = {text for text, request in asked.items() if operator.ask(text, **request) == "HIT"}
    assert hits == left


def test_B54_the_same_by_query(operator: Operator) -> None:
    operator.fill("a", user="a&b=ü")
    query = {"tag": "user:a&b=ü", "dry_run": "true"}
    told = operator.send("DELETE", "/admin/entries", params=query).json()
    assert (told["matched"], told["number"]) == (1, None)
    assert told["purged"] == {"tag": "user:a&b=ü"}
    assert operator.ask("a", user="a&b=ü") == "HIT"
    told = operator.send(
        "DELETE", "/admin/entries", params={"older_than_seconds": "0.0", "soft": "false"}
    ).json()
    assert told["purged"] == {"older_than_seconds": 0.0}
    assert operator.ask("a", user="a&b=ü") == "MISS"


@pytest.mark.parametrize("whole", [True, False], ids=["store-key", "digest"])
@pytest.mark.parametrize("in_path", [True, False], ids=["path", "body"])
def test_B54_one_entry_by_its_key(operator: Operator, whole: bool, in_path: bool) -> None:
    operator.fill("a")
    operator.fill("b")
    key = stored_key(operator, "a")
    if not whole:
        key = key.rpartition(":")[2]
    if in_path:
        told = operator.send("DELETE", f"/admin/entries/{key}").json()
    else:
        told = operator.purge(key=key)
    assert told["purged"] == {"key": key}
    assert operator.ask("b") == "HIT"
    assert operator.count(all=True) == 1
    assert operator.ask("a") == "MISS"


def test_B54_each_item_of_a_batch_of_embeddings_is_an_entry(operator: Operator) -> None:
    body = {"model": "text-embedding-3-small", "input": ["a", "b", "c"]}

    def ask() -> str:
        response = post(
            operator.proxy, body, path=EMBEDDINGS_PATH, headers={"x-project": "vectors"}
        )
        return str(response.headers["x-cache"])

    assert [ask(), ask()] == ["MISS", "HIT"]
    assert operator.count(endpoint="embeddings") == operator.count(tag="project:vectors") == 3
    operator.purge(tag="project:vectors")
    assert operator.count(endpoint="embeddings") == 0
    assert [ask(), ask()] == ["MISS", "HIT"]


def test_B54_an_answer_that_was_stored_from_a_stream_is_purged_in_both_forms(
    operator: Operator,
) -> None:
    operator.fill("a", stream=True)
    assert operator.ask("a") == "HIT"
    operator.purge(rule="main")
    assert operator.ask("a") == "MISS"
    assert operator.ask("a", stream=True) == "HIT"


def test_B54_all_variants_go_with_their_key(site: Site) -> None:
    rules = [{**RULE, "name": "main", "variants": 3}]
    operator = Operator(site.asker(settings(cache_settings={"rules": rules})).proxy)
    assert [operator.ask("a", temperature=1) for _ in range(4)] == ["MISS", "MISS", "MISS", "HIT"]
    assert operator.count(all=True) == 3
    response = operator.send(
        "POST",
        "/admin/explain",
        json=chat("a", temperature=1),
        headers={"authorization": "Bearer sk-test"},
    )
    operator.purge(key=response.json()["store_key"])
    assert operator.count(all=True) == 0
    assert operator.ask("a", temperature=1) == "MISS"
    operator.close()


def test_B54_a_hit_that_was_repeated_byte_for_byte_is_purged_too(operator: Operator) -> None:
    body, headers = chat("hot"), {"authorization": "Bearer sk-test"}
    with httpx.Client(verify=False, trust_env=False, headers=headers) as client:
        url = f"{operator.proxy.base_url}/chat/completions"
        told = [client.post(url, json=body).headers["x-cache"] for _ in range(5)]
        operator.purge(model="gpt-4o-mini")
        told.append(client.post(url, json=body).headers["x-cache"])
    assert told == ["MISS", "HIT", "HIT", "HIT", "HIT", "MISS"]


def test_B54_a_soft_purge_leaves_what_may_be_served_stale(operator: Operator, site: Site) -> None:
    operator.fill("a", model="slow-1")
    operator.purge(model="slow-1", soft=True)
    site.standin.app.script(Script(status=503))
    assert operator.ask("a", model="slow-1") == "STALE"
    assert operator.ask("a", model="slow-1") == "MISS"
    assert operator.ask("a", model="slow-1") == "HIT"


def test_B54_an_event_purges_what_it_means_and_what_it_stands_for(operator: Operator) -> None:
    operator.fill("a", {"x-project": "p"})
    operator.fill("b", model="slow-1")
    context = {"project": "p", "model": "slow-1", "by": "a webhook"}
    dry = operator.send("POST", "/admin/events/project_closed?dry_run=true", json=context).json()
    assert [each["matched"] for each in dry["purges"]] == [1, 1]
    assert operator.ask("a") == "HIT"
    told = operator.send("POST", "/admin/events/project_closed", json=context).json()
    assert told["event"] == "project_closed"
    assert [(each["purged"], each["soft"]) for each in told["purges"]] == [
        ({"tag": "project:p"}, True),
        ({"model": "slow-1"}, False),
    ]
    assert operator.ask("a") == "MISS"
    assert operator.ask("b", model="slow-1") == "MISS"


@pytest.mark.parametrize(
    ("path", "context", "status", "param", "words"),
    [
        ("nothing", {}, 404, "name", "model_updated, project_closed"),
        ("model_updated", {}, 400, "model", "lacks 'model'"),
        ("project_closed", {"project": "p"}, 400, "model", "lacks 'model'"),
        ("model_updated", {"model": ["a"]}, 400, "model", "must be a text"),
        ("spring_clean", {"seconds": "long"}, 400, "older_than", "number of seconds"),
        ("model_updated?soft=true", {"model": "m"}, 400, "soft", "known: dry_run"),
        ("model_updated?dry_run=perhaps", {"model": "m"}, 400, "dry_run", "true or false"),
        ("model_updated", [], 400, None, "must be a JSON object"),
    ],
)
def test_B54_an_event_that_can_not_be_is_refused_whole(
    operator: Operator, path: str, context: Any, status: int, param: str | None, words: str
) -> None:
    operator.fill("a", {"x-project": "p"})
    response = operator.send("POST", f"/admin/events/{path}", json=context)
    assert response.status_code == status
    error = error_of(response)
    assert error["param"] == param
    assert words in error["message"]
    assert operator.ask("a") == "HIT"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "selects nothing"),
        (b"{}", None, "selects nothing"),
        (b'{"soft":true}', None, "selects nothing"),
        (b'{"tag":null}', None, "selects nothing"),
        (b'{"all":false}', None, "selects nothing"),
        (b'{"all":true,"tag":"a"}', "all", "stands alone"),
        (b'{"all":"true"}', "all", "true or false"),
        (b'{"everything":true}', "everything", "no member 'everything'"),
        (b'{"tag":["a"]}', "tag", "must be a text"),
        (b'{"tag":" "}', "tag", "must not be empty"),
        (b'{"model":"%s"}' % (b"m" * 2000), "model", "at most 1024"),
        (b'{"endpoint":"images"}', "endpoint", "chat, embeddings"),
        (b'{"key":"*"}', "key", "64 hexadecimal digits"),
        (b'{"older_than_seconds":-1}', "older_than_seconds", "0 or more"),
        (b'{"older_than_seconds":1e999}', None, "read exactly"),
        (b'{"tag":"a","tag":"b"}', None, "read exactly"),
        (b'{"tag":"\\ud800"}', None, "read exactly"),
        (b"[]", None, "must be a JSON object"),
        (b"{", None, "not valid JSON"),
        (b'"tag"', None, "must be a JSON object"),
        (b"\xff", None, "not UTF-8"),
    ],
)
def test_B54_B73_what_selects_nothing_or_is_malformed_purges_nothing(
    operator: Operator, body: bytes, param: str | None, words: str
) -> None:
    operator.fill("a")
    response = operator.send("POST", "/admin/purge", content=body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]
    assert operator.ask("a") == "HIT"


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/admin/entries", None),
        ("/admin/entries?", None),
        ("/admin/entries?dry_run=true", None),
        ("/admin/entries?tag=", "tag"),
        ("/admin/entries?tag=a&tag=b", "tag"),
        ("/admin/entries?tag=a&dry_run=1", "dry_run"),
        ("/admin/entries?older_than_seconds=x", "older_than_seconds"),
        ("/admin/entries?older_than_seconds=nan", "older_than_seconds"),
        ("/admin/entries?all=", "all"),
        ("/admin/entries/", "key"),
        ("/admin/entries/*", "key"),
        ("/admin/entries/abc", "key"),
        (f"/admin/entries/{'0' * 64}?key=1", "key"),
        (f"/admin/entries/{'0' * 64}?all=true", "all"),
        (f"/admin/entries/{'0' * 64}?hard=true", "hard"),
    ],
)
def test_B54_B73_a_query_that_selects_nothing_or_is_malformed_purges_nothing(
    operator: Operator, path: str, param: str | None
) -> None:
    operator.fill("a")
    response = operator.send("DELETE", path)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert operator.ask("a") == "HIT"


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "with-length"])
@pytest.mark.parametrize("path", ["/admin/purge", "/admin/events/model_updated"])
def test_B54_B73_a_body_beyond_its_bound_is_refused(
    operator: Operator, path: str, chunked: bool
) -> None:
    body = b'{"tag":"%s"}' % (b"x" * 100_000)
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    response = operator.send("POST", path, content=iter(pieces) if chunked else body)
    assert response.status_code == 413
    assert "65536 bytes" in error_of(response)["message"]


def test_B54_B73_ten_megabytes_of_tags_end_in_an_error_and_nothing_else(
    operator: Operator,
) -> None:
    tags = ",".join(f"tag-{number}" for number in range(1_000_000))
    with httpx.Client(verify=False, trust_env=False) as client:
        try:
            status = client.post(
                f"{operator.proxy.base_url}/chat/completions",
                json=chat("a"),
                headers={"x-cache-tags": tags, "authorization": "Bearer sk-test"},
            ).status_code
        except httpx.HTTPError:  # the connection is closed while the client still sends
            status = 431
    assert status == 431
    assert operator.send("POST", "/admin/purge", json={"tag": tags}).status_code == 413
    operator.fill("a")


def test_B54_more_tags_than_an_entry_may_have_keep_it_out(operator: Operator) -> None:
    most = {"x-cache-tags": ",".join(f"t{number}" for number in range(64))}
    more = {"x-cache-tags": ",".join(f"t{number}" for number in range(65))}
    response = post(operator.proxy, chat("a"), headers=more)
    assert "not-stored:too-many-tags" in response.headers["cache-status"]
    assert operator.ask("a") == "MISS"
    operator.fill("b", most)
    assert operator.count(tag="t63") == 1


@pytest.mark.parametrize("tag", ["a\x01b", "a\x7f", "a\r\nb", "\u202egnp", "x" * 500], ids=ascii)
def test_B54_a_tag_of_strange_text_is_purged_by_that_text(operator: Operator, tag: str) -> None:
    operator.fill("a", user=tag)
    told = operator.purge(tag=f"user:{tag}")
    assert told["purged"] == {"tag": normalized_tag(f"user:{tag}")}
    assert re.fullmatch(r"sha256-[0-9a-f]{64}", told["purged"]["tag"])
    assert operator.ask("a", user=tag) == "MISS"


ROUTES = [
    ("POST", "/admin/purge"),
    ("DELETE", "/admin/entries?all=true"),
    ("DELETE", f"/admin/entries/{'0' * 64}"),
    ("POST", "/admin/events/model_updated"),
    ("POST", "/admin/events/nothing"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("shown", [None, "", "sk-test", "adm-wrong"])
def test_B73_without_an_admin_key_nothing_is_purged_or_told(
    operator: Operator, method: str, path: str, shown: str | None
) -> None:
    operator.fill("a")
    headers = {} if shown is None else {"x-admin-key": shown}
    response = httpx.request(
        method,
        f"{operator.proxy.url}{path}",
        headers={**headers, "authorization": "Bearer sk-test"},
        content=b'{"all":true,"model":"gpt-4o-mini"}',
        verify=False,
        trust_env=False,
    )
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_admin_key"
    assert operator.ask("a") == "HIT"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/admin/purge"), ("POST", "/admin/entries"), ("GET", "/admin/events/model_updated")],
)
def test_B73_another_method_is_told_so(operator: Operator, method: str, path: str) -> None:
    response = operator.send(method, path)
    assert response.status_code == 405
    assert error_of(response)["code"] == "method_not_allowed"


def test_B54_purges_are_counted_by_what_they_select(operator: Operator) -> None:
    def counted(kind: str) -> float:
        return metric(operator.proxy, f'magic_proxy_purges_total{{kind="{kind}"}}')

    before = {kind: counted(kind) for kind in ("tag", "several", "model")}
    operator.purge(tag="a")
    operator.purge(tag="a", model="m", soft=True)
    operator.purge(tag="a", dry_run=True)
    operator.send("POST", "/admin/events/model_updated", json={"model": "m"})
    operator.send("POST", "/admin/purge", json={})
    assert {kind: counted(kind) - before[kind] for kind in before} == {
        "tag": 1,
        "several": 1,
        "model": 1,
    }


def test_B54_a_tenant_is_purged_and_no_other(site: Site) -> None:
    clients = [
        {
            "name": name,
            "tenant": tenant,
            "key_hashes": ["sha256:" + sha256(name.encode()).hexdigest()],
        }
        for name, tenant in (("ann", "search"), ("bob", "search"), ("cy", "shop"))
    ]
    operator = Operator(site.asker(settings(clients=clients)).proxy)
    operator.fill("a", key="ann")
    operator.fill("a", key="cy")
    assert operator.count(tenant="search") == 1
    assert operator.count(tenant="ann") == 0
    operator.purge(tenant="search")
    assert operator.ask("a", key="bob") == "MISS"
    assert operator.ask("a", key="cy") == "HIT"
    operator.close()
