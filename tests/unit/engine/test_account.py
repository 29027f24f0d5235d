"""The account of a call: changes to the outcome, by place and not by name."""

from dataclasses import fields, replace

import pytest

from proxy.core.outcome import Outcome, XCache
from proxy.engine.account import changed

MISS = Outcome(XCache.MISS, "chat", model="m", detail="absent", request_id="req_1", stream=True)


@pytest.mark.parametrize("name", [member.name for member in fields(Outcome)])
def test_any_member_can_be_changed_by_itself(name: str) -> None:
    assert changed(MISS, {name: "other"}) == replace(MISS, **{name: "other"})  # type: ignore[arg-type]


def test_what_is_not_changed_stays() -> None:
    told = {"status": 200, "stored": True}
    assert changed(MISS, {}) == MISS
    assert changed(MISS, told) == replace(MISS, status=200, stored=True)


def test_what_there_is_not_cannot_be_changed() -> None:
    with pytest.raises(KeyError):
        changed(MISS, {"colour": "red"})
