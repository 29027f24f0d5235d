"""Decisions: every way that a derivation, a client's control and a look-up can meet."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.control import NO_CONTROL, ClientControl, client_control
from proxy.core.decision import (
    Bypass,
    Forward,
    Hit,
    LookUp,
    Refuse,
    StaleHit,
    after_lookup,
    before_lookup,
    bypass_reason,
    control_of,
    may_refresh,
    unservable,
)
from proxy.core.entry import Entry, Form
from proxy.core.key import CacheKey, Derivation, NoKey
from proxy.core.outcome import BypassReason, Forwarded, MissReason
from proxy.core.rules import Rule
from tests.vectors.rules import derivation_of, rule_of

NOW = 1_000.0
RULE = rule_of({"name": "r", "include_in_key": ["messages"]})
STEERED = replace(RULE, client_control=False)
KEYED = derivation_of(b'{"model":"m","messages":[{"role":"user","content":"a"}]}', RULE)
assert KEYED.key is not None
KEY: CacheKey = KEYED.key
ENTRY = Entry(
    key=KEY.store_key("p:"),
    model="m",
    rule="r",
    stored_at=NOW - 10,
    fresh_until=NOW + 50,
    expires_at=NOW + 50,
    form=Form.JSON,
    status=200,
    headers=(),
    usage=None,
    payload=b"{}",
)
STALE = replace(ENTRY, fresh_until=NOW)


def keyless(reason: NoKey | None, field: str | None = None) -> Derivation:
    return replace(KEYED, key=None, canonical=b"", reason=reason, field=field)


NO_CACHE = ClientControl(no_cache=True)
NO_STORE = ClientControl(no_store=True)
PASS = ClientControl(no_cache=True, no_store=True)
ONLY = ClientControl(only_if_cached=True)


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (NO_CONTROL, LookUp(KEY)),
        (NO_STORE, LookUp(KEY)),
        (ONLY, LookUp(KEY)),
        (replace(NO_STORE, only_if_cached=True), LookUp(KEY)),
        (ClientControl(max_age_seconds=0.0), LookUp(KEY)),
        (NO_CACHE, Forward(KEY, Forwarded.REQUEST, MissReason.NO_CACHE)),
        (replace(NO_CACHE, only_if_cached=True), Refuse(MissReason.NO_CACHE)),
        (PASS, Bypass(BypassReason.CLIENT_PASS)),
        (replace(PASS, only_if_cached=True), Refuse(BypassReason.CLIENT_PASS)),
    ],
)
def test_B13_what_is_known_of_a_key_before_the_store_is_asked(
    control: ClientControl, expected: LookUp | Forward | Bypass | Refuse
) -> None:
    assert before_lookup(KEYED, control, enabled=True) == expected


BYPASSES = [
    (keyless(NoKey.NO_RULE), True, True, Bypass(BypassReason.NO_RULE)),
    (keyless(None), True, True, Bypass(BypassReason.NO_RULE)),
    (keyless(NoKey.NO_INCLUDED_FIELD), True, True, Bypass(BypassReason.NO_KEY_FIELD)),
    (keyless(NoKey.UNREPRESENTABLE), True, True, Bypass(BypassReason.UNREPRESENTABLE)),
    (
        keyless(NoKey.UNLISTED_FIELD, "tools"),
        True,
        True,
        Bypass(BypassReason.UNLISTED_FIELD, "tools"),
    ),
    (
        keyless(NoKey.RESERVED_FIELD, "internal_model_name"),
        True,
        True,
        Bypass(BypassReason.RESERVED_FIELD, "internal_model_name"),
    ),
    # Off is off, whatever else stands in the way.
    (KEYED, False, True, Bypass(BypassReason.DISABLED)),
    (keyless(NoKey.NO_RULE), False, False, Bypass(BypassReason.DISABLED)),
    (KEYED, True, False, Bypass(BypassReason.UNLISTED_FIELD, "encoding_format")),
    (keyless(NoKey.NO_RULE), True, False, Bypass(BypassReason.NO_RULE)),
]


@pytest.mark.parametrize(("derivation", "enabled", "deliverable", "expected"), BYPASSES)
@pytest.mark.parametrize("control", [NO_CONTROL, NO_CACHE, NO_STORE])
def test_B12_a_request_that_has_no_look_up_tells_why(
    derivation: Derivation,
    enabled: bool,
    deliverable: bool,
    expected: Bypass,
    control: ClientControl,
) -> None:
    decided = before_lookup(derivation, control, enabled=enabled, deliverable=deliverable)
    only = before_lookup(derivation, ONLY, enabled=enabled, deliverable=deliverable)

    assert decided == expected
    assert only == Refuse(expected.reason)
    assert expected.forwarded is Forwarded.BYPASS


def test_B12_each_reason_to_have_no_key_has_a_bypass_of_its_own() -> None:
    assert len({bypass_reason(reason) for reason in NoKey}) == len(NoKey)
    told = {expected.reason for *_, expected in BYPASSES}
    assert told | {BypassReason.CLIENT_PASS, BypassReason.NOT_CACHEABLE} == set(BypassReason)


@pytest.mark.parametrize(
    ("field", "detail"),
    [
        (None, "unlisted-field"),
        ("", "unlisted-field"),
        ("tools", "unlisted-field:tools"),
        ("x" * 81, "unlisted-field:" + "x" * 80),
    ],
)
def test_B12_a_bypass_names_the_field_and_cuts_it(field: str | None, detail: str) -> None:
    assert Bypass(BypassReason.UNLISTED_FIELD, field).detail == detail


@pytest.mark.parametrize("found", [*MissReason])
def test_B12_every_look_up_without_an_entry_is_a_miss_for_its_reason(found: MissReason) -> None:
    assert after_lookup(KEY, found, NO_CONTROL, RULE, now=NOW) == Forward(
        KEY, Forwarded.MISS, found
    )
    assert after_lookup(KEY, found, ONLY, RULE, now=NOW) == Refuse(found)


MISS_OF_AGE = Forward(KEY, Forwarded.REQUEST, MissReason.MAX_AGE)


@pytest.mark.parametrize(
    ("entry", "max_age", "expected"),
    [
        pytest.param(ENTRY, None, Hit(KEY, ENTRY, 10.0, 50.0), id="fresh"),
        pytest.param(ENTRY, 10.0, Hit(KEY, ENTRY, 10.0, 50.0), id="just-young-enough"),
        pytest.param(ENTRY, 9.999, MISS_OF_AGE, id="too-old-for-this-client"),
        pytest.param(ENTRY, 0.0, MISS_OF_AGE, id="max-age-0"),
        pytest.param(
            STALE, None, Forward(KEY, Forwarded.STALE, MissReason.EXPIRED), id="just-expired"
        ),
        pytest.param(
            STALE, 0.0, Forward(KEY, Forwarded.STALE, MissReason.EXPIRED), id="expired-and-too-old"
        ),
        pytest.param(
            replace(ENTRY, stored_at=NOW + 5),
            0.0,
            Hit(KEY, replace(ENTRY, stored_at=NOW + 5), 0.0, 50.0),
            id="stored-in-the-future",
        ),
    ],
)
def test_B13_B15_what_a_found_entry_means(
    entry: Entry, max_age: float | None, expected: Hit | Forward
) -> None:
    control = ClientControl(max_age_seconds=max_age)

    assert after_lookup(KEY, entry, control, RULE, now=NOW) == expected
    only = after_lookup(KEY, entry, replace(control, only_if_cached=True), RULE, now=NOW)
    assert only == (expected if isinstance(expected, Hit) else Refuse(expected.reason))


def test_B13_no_store_reads_all_the_same() -> None:
    assert after_lookup(KEY, ENTRY, NO_STORE, RULE, now=NOW) == Hit(KEY, ENTRY, 10.0, 50.0)


def test_B23_a_form_that_the_entry_can_not_take_is_a_miss() -> None:
    assert unservable(KEY, NO_CONTROL) == Forward(KEY, Forwarded.MISS, MissReason.FORM)
    assert unservable(KEY, ONLY) == Refuse(MissReason.FORM)


@pytest.mark.parametrize("asked", [NO_CACHE, NO_STORE, PASS, ONLY, ClientControl(False, False)])
def test_B13_a_rule_can_take_control_from_the_client(asked: ClientControl) -> None:
    assert control_of(KEYED, asked) is asked
    assert control_of(replace(KEYED, rule=None), asked) is asked
    assert control_of(replace(KEYED, rule=STEERED), asked) == NO_CONTROL


# ---- all combinations ----

# Entries that the table is about; those that are no longer fresh were stored 1,100 s ago or more.
WINDOWED = replace(RULE, stale_while_revalidate_seconds=30.0, stale_if_error_seconds=300.0)
FOUND_THINGS: dict[str, Entry | MissReason] = {
    "absent": MissReason.ABSENT,
    "fresh": replace(ENTRY, stored_at=NOW - 100, fresh_until=NOW + 500),
    "in-swr": replace(ENTRY, stored_at=NOW - 1_100, fresh_until=NOW - 29),
    "in-sie": replace(ENTRY, stored_at=NOW - 1_100, fresh_until=NOW - 299),
    "beyond": replace(ENTRY, stored_at=NOW - 1_100, fresh_until=NOW - 301),
    # A soft purge makes an entry stale at once, however young it is.
    "soft-purged": replace(ENTRY, stored_at=NOW - 100, fresh_until=NOW),
}
# What a cell says: `hit`; `stale!` served, and revalidated; `stale` served, and left; forwarded as
# `miss` (nothing there), `expired`, `expired+` (and served if the upstream fails), `too-old`,
# `renew`; `pass` around the cache; `504`.
MATRIX = """
Cache-Control                                       absent fresh   in-swr  in-sie   beyond  soft-purged
-                                                   miss   hit     stale!  expired+ expired stale!
max-age=0                                           miss   too-old expired expired  expired expired
max-age=60                                          miss   too-old expired expired  expired expired
max-age=9999                                        miss   hit     expired expired  expired expired
only-if-cached                                      504    hit     stale   504      504     stale
only-if-cached,max-age=0                            504    504     504     504      504     504
only-if-cached,max-age=60                           504    504     504     504      504     504
only-if-cached,max-age=9999                         504    hit     504     504      504     504
no-store                                            miss   hit     stale   expired+ expired stale
no-store,max-age=0                                  miss   too-old expired expired  expired expired
no-store,max-age=60                                 miss   too-old expired expired  expired expired
no-store,max-age=9999                               miss   hit     expired expired  expired expired
no-store,only-if-cached                             504    hit     stale   504      504     stale
no-store,only-if-cached,max-age=0                   504    504     504     504      504     504
no-store,only-if-cached,max-age=60                  504    504     504     504      504     504
no-store,only-if-cached,max-age=9999                504    hit     504     504      504     504
no-cache                                            renew  renew   renew   renew    renew   renew
no-cache,max-age=0                                  renew  renew   renew   renew    renew   renew
no-cache,max-age=60                                 renew  renew   renew   renew    renew   renew
no-cache,max-age=9999                               renew  renew   renew   renew    renew   renew
no-cache,only-if-cached                             504    504     504     504      504     504
no-cache,only-if-cached,max-age=0                   504    504     504     504      504     504
no-cache,only-if-cached,max-age=60                  504    504     504     504      504     504
no-cache,only-if-cached,max-age=9999                504    504     504     504      504     504
no-cache,no-store                                   pass   pass    pass    pass     pass    pass
no-cache,no-store,max-age=0                         pass   pass    pass    pass     pass    pass
no-cache,no-store,max-age=60                        pass   pass    pass    pass     pass    pass
no-cache,no-store,max-age=9999                      pass   pass    pass    pass     pass    pass
no-cache,no-store,only-if-cached                    504    504     504     504      504     504
no-cache,no-store,only-if-cached,max-age=0          504    504     504     504      504     504
no-cache,no-store,only-if-cached,max-age=60         504    504     504     504      504     504
no-cache,no-store,only-if-cached,max-age=9999       504    504     504     504      504     504
"""


ROWS = [line.split() for line in MATRIX.strip().splitlines()]
CELLS = [
    pytest.param(said, name, cell, id=f"{said}:{name}")
    for said, *row in ROWS[1:]
    for name, cell in zip(ROWS[0][1:], row, strict=True)
]


def decided(said: str, found: Entry | MissReason, rule: Rule) -> object:
    """What comes of a request with this `Cache-Control` that finds this, the whole way."""
    headers = () if said == "-" else ((b"cache-control", said.encode()),)
    control = control_of(replace(KEYED, rule=rule), client_control(headers))
    before = before_lookup(KEYED, control, enabled=True)
    if isinstance(before, LookUp):
        return after_lookup(before.key, found, control, rule, now=NOW)
    return before


def meant(cell: str, found: Entry | MissReason) -> object:
    """The decision that a cell stands for."""
    stale = None if isinstance(found, MissReason) else found
    age, ttl = (0.0, 0.0) if stale is None else (NOW - stale.stored_at, stale.fresh_until - NOW)
    entry = stale or ENTRY
    return {
        "hit": Hit(KEY, entry, age, ttl),
        "stale!": StaleHit(KEY, entry, age, ttl, revalidate=True),
        "stale": StaleHit(KEY, entry, age, ttl, revalidate=False),
        "miss": Forward(KEY, Forwarded.MISS, MissReason.ABSENT),
        "expired": Forward(KEY, Forwarded.STALE, MissReason.EXPIRED),
        "expired+": Forward(KEY, Forwarded.STALE, MissReason.EXPIRED, stale),
        "too-old": Forward(KEY, Forwarded.REQUEST, MissReason.MAX_AGE),
        "renew": Forward(KEY, Forwarded.REQUEST, MissReason.NO_CACHE),
        "pass": Bypass(BypassReason.CLIENT_PASS),
    }[cell]


def assert_is(decision: object, cell: str, found: Entry | MissReason) -> None:
    if cell == "504":
        assert isinstance(decision, Refuse)
    else:
        assert decision == meant(cell, found)


def test_B13_the_table_is_whole() -> None:
    ages = ("", "max-age=0", "max-age=60", "max-age=9999")
    flags = product(("", "no-cache"), ("", "no-store"), ("", "only-if-cached"), ages)
    all_said = {",".join(filter(None, each)) or "-" for each in flags}

    assert ROWS[0][1:] == [*FOUND_THINGS]
    assert {row[0] for row in ROWS[1:]} == all_said
    assert len(ROWS) - 1 == len(all_said) == 32


@pytest.mark.parametrize(("said", "name", "expected"), CELLS)
def test_B13_B15_every_combination_of_directives_and_entries(
    said: str, name: str, expected: str
) -> None:
    assert_is(decided(said, FOUND_THINGS[name], WINDOWED), expected, FOUND_THINGS[name])


@pytest.mark.parametrize("name", [*FOUND_THINGS])
@pytest.mark.parametrize("said", [row[0] for row in ROWS[1:]])
def test_B13_where_a_rule_refuses_control_nothing_that_is_said_counts(said: str, name: str) -> None:
    steered = replace(WINDOWED, client_control=False)
    plainly = {
        "absent": "miss",
        "fresh": "hit",
        "in-swr": "stale!",
        "in-sie": "expired+",
        "beyond": "expired",
        "soft-purged": "stale!",
    }

    found = FOUND_THINGS[name]
    assert_is(decided(said, found, steered), plainly[name], found)


# What is stale, under rules with one of the windows, both or none; SWR, SIE and the cells.
WINDOWS = """
swr sie  in-swr   in-sie   beyond   soft-purged
0   0    expired  expired  expired  expired
30  0    stale!   expired  expired  stale!
0   300  expired+ expired+ expired  expired+
30  300  stale!   expired+ expired  stale!
300 30   stale!   stale!   expired  stale!
302 302  stale!   stale!   stale!   stale!
"""


@pytest.mark.parametrize(
    ("swr", "sie", "row"),
    [(float(a), float(b), row) for a, b, *row in map(str.split, WINDOWS.strip().splitlines()[1:])],
)
def test_B15_how_long_a_rule_serves_what_is_stale(swr: float, sie: float, row: list[str]) -> None:
    rule = replace(RULE, stale_while_revalidate_seconds=swr, stale_if_error_seconds=sie)

    for name, cell in zip(WINDOWS.split()[2:6], row, strict=True):
        assert_is(decided("-", FOUND_THINGS[name], rule), cell, FOUND_THINGS[name])


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        (-0.001, "hit"),
        (0.0, "stale!"),
        (29.999, "stale!"),
        (30.0, "expired+"),
        (299.999, "expired+"),
        (300.0, "expired"),
    ],
)
def test_B15_the_windows_have_sharp_ends(since: float, expected: str) -> None:
    entry = replace(ENTRY, fresh_until=NOW - since)

    assert_is(decided("-", entry, WINDOWED), expected, entry)


@pytest.mark.parametrize(
    ("said", "may"),
    [("", True), ("max-age=5", True), ("no-store", False), ("only-if-cached", False)],
)
def test_B13_who_wants_nothing_fetched_or_stored_starts_no_refresh(said: str, may: bool) -> None:
    assert may_refresh(client_control(((b"cache-control", said.encode()),))) is may


def test_B15_a_stale_entry_in_need_tells_its_age_and_how_long_it_is_stale() -> None:
    assert StaleHit.of(KEY, STALE, NOW + 7) == StaleHit(KEY, STALE, 17.0, -7.0, revalidate=False)


# ---- what always holds ----

DERIVATIONS = st.sampled_from([KEYED, *(keyless(reason) for reason in NoKey)])
CONTROLS = st.builds(
    ClientControl,
    no_cache=st.booleans(),
    no_store=st.booleans(),
    only_if_cached=st.booleans(),
    max_age_seconds=st.none() | st.floats(0, 100),
)
FOUND = st.sampled_from([STALE, *FOUND_THINGS.values(), *MissReason])


@given(DERIVATIONS, CONTROLS, FOUND, st.sampled_from([RULE, WINDOWED]), st.data())
def test_B13_only_if_cached_never_forwards_and_no_cache_never_looks_up(
    derivation: Derivation,
    control: ClientControl,
    found: Entry | MissReason,
    rule: Rule,
    data: st.DataObject,
) -> None:
    enabled, deliverable = data.draw(st.booleans()), data.draw(st.booleans())
    decision: object = before_lookup(derivation, control, enabled=enabled, deliverable=deliverable)
    if isinstance(decision, LookUp):
        assert enabled
        assert deliverable
        assert not control.no_cache
        decision = after_lookup(decision.key, found, control, rule, now=NOW)

    if control.only_if_cached:
        assert isinstance(decision, Hit | StaleHit | Refuse)
    else:
        assert not isinstance(decision, Refuse)
