"""Over HTTP: the list of models that clients may name."""

from collections.abc import Iterator
from typing import Any

import pytest

from proxy.standin import RunningStandIn, Script, start_standin
from proxy.standin.script import server_error, unauthorised
from tests.integration.conftest import NewAsker
from tests.integration.contract import Site, cache_status, error_of
from tests.integration.resources import Reader, x_cache

LISTED = "/models"


def listing(*models: str, **over: Any) -> Script:
    return Script(
        body={
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": 7, "owned_by": "them", "context": 8000}
                for name in models
            ],
        },
        **over,
    )


@pytest.fixture(scope="module")
def second() -> Iterator[RunningStandIn]:
    """Another upstream."""
    with start_standin() as running:
        yield running


@pytest.fixture
def several(second: RunningStandIn) -> dict[str, Any]:
    """Settings with two upstreams, models of both under other names, and an alias."""
    second.app.reset()
    return {
        "upstreams": {"openai": {}, "second": {"base_url": second.base_url, "api_keys": ["k2"]}},
        "models": {
            "big": {"upstream": "second", "model": "llama-3"},
            "cheap": {"model": "gpt-small"},
            "plain": {},
        },
        "aliases": {"default": "big"},
        "clients": "open",
    }


def ids(reader: Reader, **more: Any) -> list[str]:
    answer = reader(LISTED, **more)
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "list"
    return [model["id"] for model in answer.json()["data"]]


def test_all_names_that_clients_may_use_are_listed_with_what_upstreams_tell_of_them(
    ask: NewAsker, site: Site, several: dict[str, Any], second: RunningStandIn
) -> None:
    read = Reader(ask(several), site)
    site.standin.app.script(listing("gpt-small", "gpt-large", "plain"), path=LISTED)
    second.app.script(listing("llama-3", "not-reachable-by-its-name"), path=LISTED)
    assert ids(read) == ["big", "cheap", "plain", "default", "gpt-small", "gpt-large"]
    models = {model["id"]: model for model in read(LISTED).json()["data"]}
    assert models["default"]["context"] == models["cheap"]["context"] == 8000
    assert second.app.requests[-1].credential == "k2"
    assert site.standin.app.requests[-1].credential == read.asker.key
    assert x_cache(read(LISTED)) == "HIT"
    assert read.asked(LISTED) == 1
    assert x_cache(read(LISTED, key="sk-another")) == "MISS"


def test_an_upstream_that_fails_costs_what_it_tells_and_is_asked_again_soon(
    ask: NewAsker, site: Site, several: dict[str, Any], second: RunningStandIn
) -> None:
    read = Reader(ask(several), site)
    site.standin.app.script(listing("gpt-small"), path=LISTED)
    second.app.script(server_error(500), times=None, path=LISTED)
    answer = read(LISTED)
    told = {model["id"]: model["owned_by"] for model in answer.json()["data"]}
    assert told == {
        "big": "magic-proxy",
        "cheap": "them",
        "plain": "magic-proxy",
        "default": "magic-proxy",
        "gpt-small": "them",
    }
    ttl = cache_status(answer)["ttl"]
    assert isinstance(ttl, int)
    assert ttl <= 10


@pytest.mark.parametrize("script", [unauthorised(), server_error(503)])
def test_B65_what_the_default_upstream_answers_instead_of_its_list_is_the_answer(
    ask: NewAsker, site: Site, several: dict[str, Any], script: Script
) -> None:
    read = Reader(ask(several), site)
    site.standin.app.script(script, path=LISTED)
    answer = read(LISTED)
    assert (answer.status_code, answer.json()) == (script.status, script.body)
    assert read.asker.stored() == 0


@pytest.mark.parametrize("status", [404, 405])
def test_a_default_upstream_without_a_list_leaves_the_names(
    ask: NewAsker, site: Site, several: dict[str, Any], status: int
) -> None:
    read = Reader(ask(several), site)
    site.standin.app.script(server_error(status), path=LISTED)
    assert ids(read) == ["big", "cheap", "plain", "default"]
    assert x_cache(read(LISTED)) == "HIT"


def test_a_closed_list_has_no_others_and_needs_nobody(
    ask: NewAsker, site: Site, several: dict[str, Any], second: RunningStandIn
) -> None:
    closed = {**several, "unlisted_models": "refuse"}
    read = Reader(ask(closed), site)
    for upstream in (site.standin, second):
        upstream.app.script(server_error(500), times=None, path=LISTED)
    assert ids(read) == ["big", "cheap", "plain", "default"]
    refused = read("/models/gpt-large")
    assert (refused.status_code, error_of(refused)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "header", [{"if-none-match": "*"}, {"range": "bytes=0-9"}, {"accept": "text/html"}], ids=str
)
def test_a_merged_list_is_given_whole_whatever_part_or_form_was_asked_for(
    ask: NewAsker, site: Site, several: dict[str, Any], header: dict[str, str]
) -> None:
    read = Reader(ask(several), site)
    site.standin.app.script(listing("gpt-large"), path=LISTED)
    assert ids(read, headers=header) == ["big", "cheap", "plain", "default", "gpt-large"]
    asked = site.standin.app.requests[-1]
    assert asked.header("accept") == "application/json"
    assert not any(asked.header(name) for name in header if name != "accept")
    assert x_cache(read(LISTED)) == "HIT"


def test_a_merged_list_depends_on_what_the_lists_in_it_depend_on(
    ask: NewAsker, site: Site, several: dict[str, Any]
) -> None:
    read = Reader(ask(several), site)
    varying = listing("gpt-large", headers=(("vary", "X-Region"),))
    site.standin.app.script(varying, times=None, path=LISTED)
    assert read(LISTED).headers["vary"] == "X-Region"
    assert x_cache(read(LISTED)) == "MISS"


def test_a_closed_list_of_nothing_is_empty(ask: NewAsker, site: Site) -> None:
    read = Reader(ask({"unlisted_models": "refuse", "catalogue": "merged"}), site)
    assert ids(read) == []


def test_one_model_is_asked_for_by_its_upstreams_name_and_told_under_the_clients(
    ask: NewAsker, site: Site, several: dict[str, Any], second: RunningStandIn
) -> None:
    read = Reader(ask(several), site)
    second.app.script(Script(body={"id": "llama-3", "context": 9}), path="/models/llama-3")
    assert read("/models/default").json() == {"id": "default", "context": 9}
    assert x_cache(read("/models/default")) == "HIT"
    assert second.app.requests[-1].raw_path.endswith("/models/llama-3")
    # The upstream does not know it, or tells of no single one.
    second.app.script(server_error(404), path="/models/llama-3")
    assert read("/models/big").json()["id"] == "big"
    # Not listed: as the upstream has it.
    assert read("/models/gpt-large").json()["id"] == "gpt-large"
    site.standin.app.script(server_error(404), path="/models/nothing")
    assert read("/models/nothing").status_code == 404
    second.app.script(unauthorised(), path="/models/llama-3")
    assert read("/models/big", headers={"cache-control": "no-cache"}).status_code >= 400


def test_a_model_with_slashes_in_its_name_is_one_model(
    ask: NewAsker, site: Site, several: dict[str, Any], second: RunningStandIn
) -> None:
    several["models"] = {"org/big": {"upstream": "second", "model": "meta/llama"}}
    several["aliases"] = {}
    read = Reader(ask(several), site)
    second.app.script(Script(body={"id": "meta/llama"}), times=None, path="/models/meta%2Fllama")
    for spelling in ("/models/org/big", "/models/org%2Fbig"):
        assert read(spelling).json() == {"id": "org/big"}


def test_a_list_in_a_coding_that_was_not_asked_for_is_read(
    ask: NewAsker, site: Site, several: dict[str, Any]
) -> None:
    read = Reader(ask(several), site)
    site.standin.app.script(listing("gpt-small", encoding="gzip"), path=LISTED)
    assert "gpt-small" in ids(read)
    site.standin.app.script(listing("gpt-small", encoding="br"), path=LISTED)
    assert read(LISTED, headers={"cache-control": "no-cache"}).status_code == 502


def test_a_list_that_is_not_one_is_an_error(
    ask: NewAsker, site: Site, several: dict[str, Any]
) -> None:
    read = Reader(ask(several), site)
    site.standin.app.script(Script(body={"object": "list", "data": [1, {"id": 2}]}), path=LISTED)
    assert ids(read) == ["big", "cheap", "plain", "default"]
    site.standin.app.script(Script(close_before_answer=True), times=None, path=LISTED)
    failed = read(LISTED, headers={"cache-control": "no-cache"})
    assert failed.status_code == 502
    error_of(failed)


def test_without_a_cache_the_list_is_merged_all_the_same(
    ask: NewAsker, site: Site, several: dict[str, Any]
) -> None:
    read = Reader(ask({**several, "cache_settings": {"enabled": False}}), site)
    site.standin.app.script(listing("gpt-small"), times=None, path=LISTED)
    for _ in range(2):
        assert ids(read)[-1] == "gpt-small"
    assert read.asked(LISTED) == 2


def test_passthrough_lists_what_the_default_upstream_does(
    ask: NewAsker, site: Site, several: dict[str, Any]
) -> None:
    read = Reader(ask({**several, "catalogue": "passthrough"}), site)
    site.standin.app.script(listing("gpt-small"), path=LISTED)
    assert ids(read) == ["gpt-small"]
    assert x_cache(read(LISTED)) == "HIT"


def test_one_upstream_alone_is_merged_where_that_is_said(ask: NewAsker, site: Site) -> None:
    read = Reader(ask({"catalogue": "merged"}), site)
    site.standin.app.script(listing("gpt-small"), path=LISTED)
    assert ids(read) == ["gpt-small"]


def test_a_deleted_model_is_gone_from_the_list_at_once(
    ask: NewAsker, site: Site, several: dict[str, Any]
) -> None:
    read = Reader(ask(several), site)
    site.standin.app.script(listing("ft:mine"), path=LISTED)
    assert ids(read)[-1] == "ft:mine"
    assert read("/models/ft:mine").status_code == 200
    deleted = Script(body={"id": "ft:mine", "deleted": True})
    site.standin.app.script(deleted, when=lambda request: request.method == "DELETE")
    assert read("/models/ft:mine", "DELETE").status_code == 200
    site.standin.app.script(listing(), path=LISTED)
    assert ids(read)[-1] == "default"
