"""A purge read from what an operator wrote: what it selects, and what is refused (B54)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.purge import BadPurge, Purge
from proxy.core.selectors import Selector
from proxy.core.tags import normalized_tag

PREFIX = "magic_proxy:cache:"
DIGEST = "0123456789abcdef" * 4
STORE_KEY = f"{PREFIX}v1:chat:shared:{DIGEST}"


def read(members: dict[str, Any]) -> Purge:
    return Purge.of(members, key_prefix=PREFIX)


@pytest.mark.parametrize(
    ("members", "selector", "kind"),
    [
        ({"model": "gpt-4o"}, Selector(model="gpt-4o"), "model"),
        ({"rule": "chat"}, Selector(rule="chat"), "rule"),
        ({"tenant": "search"}, Selector(tenant="search"), "tenant"),
        ({"tag": "project:a"}, Selector(tag="project:a"), "tag"),
        ({"endpoint": "chat"}, Selector(endpoint="chat"), "endpoint"),
        ({"key": DIGEST}, Selector(digest=DIGEST), "key"),
        ({"key": STORE_KEY}, Selector(digest=DIGEST, endpoint="chat"), "key"),
        ({"tag": "a", "model": "m"}, Selector(tag="a", model="m"), "several"),
        ({"all": True}, Selector(), "all"),
        ({"older_than_seconds": 60}, Selector(), "older_than_seconds"),
        ({"tag": "a", "older_than_seconds": 60}, Selector(tag="a"), "several"),
        ({"tag": "a", "model": None, "all": False}, Selector(tag="a"), "tag"),
    ],
)
def test_B54_members_select_and_say_what_by(
    members: dict[str, Any], selector: Selector, kind: str
) -> None:
    purge = read(members)
    assert purge.selector == selector
    assert purge.kind == kind
    assert not purge.soft
    assert not purge.dry_run
    told = {name: value for name, value in members.items() if value not in (None, False)}
    assert purge.as_dict() == told


def test_B54_how_to_purge_stands_beside_what() -> None:
    purge = read({"all": True, "soft": True, "dry_run": True})
    assert (purge.soft, purge.dry_run, purge.selector) == (True, True, Selector())
    assert read({"tag": "a", "older_than_seconds": 0}).older_than_seconds == 0.0


def test_B54_a_store_key_is_kept_to_be_deleted_and_a_digest_is_not() -> None:
    assert read({"key": STORE_KEY}).store_key == STORE_KEY
    assert read({"key": f"{STORE_KEY}:2"}).store_key == f"{STORE_KEY}:2"
    assert read({"key": f"{STORE_KEY}:2"}).selector == Selector(digest=DIGEST, endpoint="chat")
    assert read({"key": DIGEST}).store_key is None
    assert read({"key": DIGEST.upper()}).selector == Selector(digest=DIGEST)


def test_B54_a_tag_is_told_as_it_is_stored() -> None:
    assert read({"tag": "a\x00b"}).as_dict() == {"tag": normalized_tag("a\x00b")}


@pytest.mark.parametrize(
    ("members", "member", "words"),
    [
        ({}, "", "selects nothing"),
        ({"soft": True}, "", "selects nothing"),
        ({"all": False, "dry_run": True}, "", "selects nothing"),
        ({"tag": None}, "", "selects nothing"),
        ({"tga": "a"}, "tga", "no member 'tga'"),
        ({"digest": DIGEST}, "digest", "no member 'digest'"),
        ({"all": True, "tag": "a"}, "all", "not with tag"),
        ({"all": True, "older_than_seconds": 1}, "all", "not with older_than_seconds"),
        ({"all": "true"}, "all", "must be true or false"),
        ({"all": 1}, "all", "must be true or false"),
        ({"tag": "a", "soft": "yes"}, "soft", "must be true or false"),
        ({"tag": ""}, "tag", "must not be empty"),
        ({"tag": " "}, "tag", "must not be empty"),
        ({"tag": ["a"]}, "tag", "must be a text"),
        ({"tag": 5}, "tag", "must be a text"),
        ({"model": ""}, "model", "must not be empty"),
        ({"model": "m" * 1025}, "model", "at most 1024"),
        ({"tenant": "\ud800"}, "tenant", "Unicode"),
        ({"endpoint": "images"}, "endpoint", "chat, embeddings"),
        ({"key": DIGEST[:-1]}, "key", "64 hexadecimal digits"),
        ({"key": f"other:v1:chat:shared:{DIGEST}"}, "key", "starts with magic_proxy:cache:"),
        ({"key": f"{PREFIX}v1:images:shared:{DIGEST}"}, "key", "store key"),
        ({"key": f"{STORE_KEY}*"}, "key", "store key"),
        ({"key": 5}, "key", "must be a text"),
        ({"key": STORE_KEY, "endpoint": "embeddings"}, "endpoint", "of another endpoint"),
        ({"older_than_seconds": -1}, "older_than_seconds", "0 or more"),
        ({"older_than_seconds": "60"}, "older_than_seconds", "must be a number"),
        ({"older_than_seconds": True}, "older_than_seconds", "must be a number"),
        ({"older_than_seconds": float("inf")}, "older_than_seconds", "0 or more"),
        ({"older_than_seconds": float("nan")}, "older_than_seconds", "0 or more"),
        ({"older_than_seconds": 10**400}, "older_than_seconds", "0 or more"),
    ],
)
def test_B54_what_is_no_purge_is_refused_by_name(
    members: dict[str, Any], member: str, words: str
) -> None:
    with pytest.raises(BadPurge, match=words) as caught:
        read(members)
    assert caught.value.member == member


names = st.sampled_from(["key", "rule", "model", "tag", "tenant", "endpoint", "all", "soft", "x"])
values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


@given(st.dictionaries(names | st.just("older_than_seconds"), values, max_size=4))
def test_B54_any_members_are_a_purge_or_refused_and_everything_has_to_be_said(
    members: dict[str, Any],
) -> None:
    try:
        purge = read(members)
    except BadPurge:
        return
    if purge.selector == Selector() and purge.older_than_seconds is None:
        assert members["all"] is True
