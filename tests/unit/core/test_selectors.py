"""What an operator may write to select entries, and what a key says of itself."""

import pytest

from proxy.core.key import CacheKey
from proxy.core.selectors import LONGEST_VALUE, Selector, key_members
from proxy.core.tags import normalized_tag
from proxy.core.wire import Endpoint

DIGEST = "0f" * 32


def test_B54_a_selector_is_made_of_what_an_operator_wrote() -> None:
    members = {"digest": DIGEST, "endpoint": "chat", "rule": "r", "model": "m", "tenant": "t"}
    selector = Selector.from_members({**members, "tag": "project:x"})
    assert selector == Selector(DIGEST, "chat", "r", "m", "t", "project:x")
    assert dict(selector.set_members) == {**members, "tag": "project:x"}


def test_B54_no_members_select_everything() -> None:
    assert Selector.from_members({}) == Selector()


@pytest.mark.parametrize("tag", ["  a  ", "a,b", "\x00", "x" * 10_000_000, "\ud800"])
def test_B54_a_tag_is_selected_in_the_form_in_which_entries_carry_it(tag: str) -> None:
    assert Selector.from_members({"tag": tag}).tag == normalized_tag(tag)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"modle": "m"}, "'modle' can't be selected by; what can: digest, endpoint, rule, model"),
        ({"model": ""}, "model must not be empty"),
        ({"tag": " \t "}, "tag must not be empty"),
        ({"rule": 1}, "rule must be a text"),
        ({"tenant": None}, "tenant must be a text"),
        ({"model": ["m"]}, "model must be a text"),
        ({"model": "m" * (LONGEST_VALUE + 1)}, "model must have at most 1024 characters"),
        ({"model": "\udc00"}, "model must be Unicode text"),
        ({"digest": DIGEST.upper()}, "digest must be 64 hexadecimal digits, in lower case"),
        ({"digest": DIGEST[1:]}, "digest must be 64"),
        ({"endpoint": "images"}, "endpoint must be one of: chat, embeddings"),
    ],
)
def test_B54_a_malformed_selector_is_refused_with_the_reason(
    members: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=r"must|can't") as refused:
        Selector.from_members(members)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize("prefix", ["", "p:", "magic_proxy:cache:", "a:b:c:d:e:v1:chat:"])
@pytest.mark.parametrize("variant", [0, 1, 31])
@pytest.mark.parametrize("endpoint", Endpoint)
def test_a_key_tells_its_digest_and_endpoint_under_any_prefix(
    prefix: str, variant: int, endpoint: Endpoint
) -> None:
    key = CacheKey(1, endpoint, "s-1", DIGEST).store_key(prefix, variant)
    assert key_members(key) == (DIGEST, endpoint.value)


@pytest.mark.parametrize("key", ["", "a", "a:b", ":", "x" * 64, "::::::"])
def test_what_is_no_store_key_tells_nothing_and_breaks_nothing(key: str) -> None:
    assert key_members(key)[0] in {"", key}
