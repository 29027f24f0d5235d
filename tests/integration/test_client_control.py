"""Over HTTP: what clients say in `Cache-Control`, and what is stored when they say it (B13)."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.integration.ageing import TTL_SECONDS, Ageing, Ages, completion_id
from tests.integration.contract import cache_status, error_of
from tests.integration.structured_fields import Token

WINDOWS: Mapping[str, Any] = {"stale_while_revalidate_seconds": 30, "stale_if_error_seconds": 300}


# What is there when the client asks, in seconds since it was stored; None is nothing.
THINGS: dict[str, float | None] = {
    "absent": None,
    "fresh": 100.0,
    "in-swr": TTL_SECONDS + 29.0,
    "in-sie": TTL_SECONDS + 299.0,
    "beyond": TTL_SECONDS + 301.0,
}
# Each cell: X-Cache, `/`, why (below), how often the upstream is asked for it, and what is there
# afterwards: the `new` answer, the `old` one fresh, still served (`stale`), or only still kept
# (`kept`), or nothing (`none`).
TABLE = """
Cache-Control            absent          fresh           in-swr            in-sie           beyond
-                        MISS/m,1,new    HIT/h,0,old     STALE/s,1,new     MISS/e,1,new     MISS/m,1,new
max-age=0                MISS/m,1,new    MISS/x,1,new    MISS/e,1,new      MISS/e,1,new     MISS/m,1,new
max-age=9999             MISS/m,1,new    HIT/h,0,old     MISS/e,1,new      MISS/e,1,new     MISS/m,1,new
only-if-cached           ERROR/o,0,none  HIT/h,0,old     STALE/l,0,stale   ERROR/o,0,kept   ERROR/o,0,none
only-if-cached,max-age=0 ERROR/o,0,none  ERROR/o,0,old   ERROR/o,0,stale   ERROR/o,0,kept   ERROR/o,0,none
no-store                 MISS/M,1,none   HIT/h,0,old     STALE/l,0,stale   MISS/E,1,kept    MISS/M,1,none
no-store,max-age=0       MISS/M,1,none   MISS/X,1,old    MISS/E,1,stale    MISS/E,1,kept    MISS/M,1,none
no-cache                 MISS/n,1,new    MISS/n,1,new    MISS/n,1,new      MISS/n,1,new     MISS/n,1,new
no-cache,only-if-cached  ERROR/o,0,none  ERROR/o,0,old   ERROR/o,0,stale   ERROR/o,0,kept   ERROR/o,0,none
no-cache,no-store        BYPASS/p,1,none BYPASS/p,1,old  BYPASS/p,1,stale  BYPASS/p,1,kept  BYPASS/p,1,none
"""
_STORED = {"fwd-status": 200, "ttl": TTL_SECONDS, "stored": True}
_UNSTORED = {"fwd-status": 200}
# What `Cache-Status` says in each case; a `ttl` that depends on the age is checked beside.
WHY: dict[str, dict[str, Any]] = {
    "h": {"hit": True},
    "s": {"hit": True, "detail": "revalidating"},
    "l": {"hit": True},
    "m": {"fwd": Token("miss"), **_STORED, "detail": "absent"},
    "e": {"fwd": Token("stale"), **_STORED, "detail": "expired"},
    "x": {"fwd": Token("request"), **_STORED, "detail": "max-age"},
    "n": {"fwd": Token("request"), **_STORED, "detail": "no-cache"},
    "M": {"fwd": Token("miss"), **_UNSTORED, "detail": "absent, not-stored:client-no-store"},
    "E": {"fwd": Token("stale"), **_UNSTORED, "detail": "expired, not-stored:client-no-store"},
    "X": {"fwd": Token("request"), **_UNSTORED, "detail": "max-age, not-stored:client-no-store"},
    "p": {"fwd": Token("bypass"), "fwd-status": 200, "detail": "client-pass"},
    "o": {"detail": "not_cached"},
}
ROWS = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [
    pytest.param(said, name, cell, id=f"{said}:{name}")
    for said, *row in ROWS[1:]
    for name, cell in zip(ROWS[0][1:], row, strict=True)
]


@pytest.fixture(scope="module")
def windowed(ages: Ages) -> Ageing:
    """One client for the whole table: each cell is about a text of its own."""
    return ages(**WINDOWS)


@pytest.fixture(scope="module")
def steered(ages: Ages) -> Ageing:
    """The same, but for what clients may say."""
    return ages(**WINDOWS, client_control=False)


def prepared(here: Ageing, text: str, age: float | None) -> str:
    """Have an answer to `text` there that is so old; its id."""
    if age is None:
        return ""
    stored = here.ask(text)
    here.settled()
    here.clock.advance(age)
    return completion_id(stored)


def found_after(here: Ageing, text: str, old: str) -> str:
    """What a plain request finds, as the table names it."""
    probe = here.ask(text)
    went = cache_status(probe).get("fwd")
    assert went is None or isinstance(went, Token)
    told = (probe.headers["x-cache"], went, completion_id(probe) == old)
    here.settled()
    return {
        ("HIT", None, True): "old",
        ("HIT", None, False): "new",
        ("STALE", None, True): "stale",
        ("MISS", Token("stale"), False): "kept",
        ("MISS", Token("miss"), False): "none",
    }[told]


def check(here: Ageing, text: str, said: str, name: str, cell: str) -> None:
    what, calls, after = cell.split(",")
    x_cache, why = what.split("/")
    age = THINGS[name]
    old = prepared(here, text, age)
    before = len(here.calls(text))

    answer = here.ask(text, "" if said == "-" else said)

    assert answer.headers["x-cache"] == x_cache
    status = cache_status(answer)
    if x_cache in {"HIT", "STALE"}:
        assert age is not None
        assert status.pop("ttl") == TTL_SECONDS - age
        assert answer.headers["age"] == str(int(age))
        assert completion_id(answer) == old
    else:
        assert "age" not in answer.headers
    assert status == WHY[why]
    if x_cache == "ERROR":
        assert (answer.status_code, error_of(answer)["code"]) == (504, "not_cached")
    else:
        assert answer.status_code == 200
    assert len(here.calls(text)) - before == int(calls)
    assert found_after(here, text, old) == after


@pytest.mark.parametrize(("said", "name", "cell"), CELLS)
def test_B13_B15_what_is_said_and_what_is_there(
    said: str, name: str, cell: str, windowed: Ageing
) -> None:
    check(windowed, f"Table {said} {name}.", said, name, cell)


@pytest.mark.parametrize("name", [*THINGS])
@pytest.mark.parametrize("said", ["no-cache", "no-store,max-age=0", "only-if-cached"])
def test_B13_a_rule_can_refuse_to_be_steered(said: str, name: str, steered: Ageing) -> None:
    plain = ROWS[1][ROWS[0].index(name)]

    check(steered, f"Steered {said} {name}.", said, name, plain)
