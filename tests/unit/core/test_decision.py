"""Decisions: every way that a derivation, a client's control and a look-up can meet."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.control import NO_CONTROL, ClientControl
from proxy.core.decision import (
    Bypass,
    Forward,
    Hit,
    LookUp,
    Refuse,
    after_lookup,
    before_lookup,
    bypass_reason,
    control_of,
    unservable,
)
from proxy.core.entry import Entry, Form
from proxy.core.key import CacheKey, Derivation, NoKey
from proxy.core.outcome import BypassReason, Forwarded, MissReason
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
    assert after_lookup(KEY, found, NO_CONTROL, RULE, now=NOW) == Forward(KEY, Forwarded.MISS, found)
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


DERIVATIONS = st.sampled_from([KEYED, *(keyless(reason) for reason in NoKey)])
CONTROLS = st.builds(
    ClientControl,
    no_cache=st.booleans(),
    no_store=st.booleans(),
    only_if_cached=st.booleans(),
    max_age_seconds=st.none() | st.floats(0, 100),
)
FOUND = st.sampled_from([ENTRY, STALE, *MissReason])


@given(DERIVATIONS, CONTROLS, FOUND, st.booleans(), st.booleans())
def test_B13_only_if_cached_never_forwards_and_no_cache_never_looks_up(
    derivation: Derivation,
    control: ClientControl,
    found: Entry | MissReason,
    enabled: bool,
    deliverable: bool,
) -> None:
    decided: object = before_lookup(derivation, control, enabled=enabled, deliverable=deliverable)
    if isinstance(decided, LookUp):
        assert enabled
        assert deliverable
        assert not control.no_cache
        decided = after_lookup(decided.key, found, control, RULE, now=NOW)

    if control.only_if_cached:
        assert isinstance(decided, Hit | Refuse)
    else:
        assert not isinstance(decided, Refuse)
