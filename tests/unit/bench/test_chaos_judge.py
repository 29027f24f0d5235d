"""The hour of chaos finds what it looks for: what is made up wrong is told, what is right is not."""

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from bench.chaos_judge import ChaosJudge, Ended, Fault
from bench.chaos_ledger import Call, Ledger
from bench.chaos_load import HURRY_HEADER
from bench.chaos_rules import KEYS, TOTAL_SECONDS
from bench.chaos_weather import HASTE, MACHINE, REDIS, WORKER, Sky, Trouble, Weather, Window
from bench.checked import Ask, Came, Result
from bench.stamped import Stamp, chat_digest, through_digest

NOW = 1_000.0
PROMPT = [{"role": "user", "content": "Hello"}]


def body(model: str = "tolerant") -> dict[str, Any]:
    return {"model": model, "messages": PROMPT, "temperature": 0.0}


def error(code: str) -> str:
    return f'{{"error": {{"message": "-", "type": "-", "param": null, "code": "{code}"}}}}'


class World:
    """A judge, and what it judges by."""

    def __init__(self) -> None:
        self.weather = Weather()
        self.ledger = Ledger(self.weather)
        self.judge = ChaosJudge(self.weather, self.ledger)

    def breaks(
        self, trouble: Trouble, place: str, began: float = -2.0, ended: float = 2.0
    ) -> Window:
        """A window around NOW."""
        window = self.weather.begins(trouble, place, NOW + began)
        window.ended = NOW + ended
        return window

    def no_keys(self, upstream: str, trouble: Trouble = Trouble.LIMITED) -> None:
        for key in KEYS[upstream]:
            self.breaks(trouble, key)

    def call(self, digest: str, upstream: str = "beta", **changes: Any) -> Call:
        """One that came during the request."""
        call = self.ledger.called(upstream, KEYS[upstream][0], [digest], NOW + 0.1)
        for name, value in {"ended": NOW + 0.2, "status": 200, **changes}.items():
            setattr(call, name, value)
        return call

    def fault(self, **changes: Any) -> Fault | None:
        """What the judge says of a result."""
        before = len(self.judge.complaints)
        self.judge.judge(replace(failed(), **changes))
        found = self.judge.complaints[before:]
        return found[0].fault if found else None


def failed(model: str = "tolerant", **headers: str) -> Result:
    ask = Ask("chat", "", body(model), headers)
    note = error("upstream_unreachable")
    return Result(ask, NOW, NOW + 0.5, Came.STATUS, 502, "ERROR", note=note)


DIGEST = chat_digest(body())


# ---- errors ----


def test_an_error_under_a_clear_sky_is_a_fault() -> None:
    assert World().fault() is Fault.FAILED


def test_an_error_is_a_fault_while_one_upstream_of_the_chain_is_well() -> None:
    world = World()
    world.breaks(Trouble.REFUSE, "beta")
    assert world.fault() is Fault.FAILED
    world.breaks(Trouble.SLOW, "gamma")
    assert world.fault() is Fault.FAILED
    world.breaks(Trouble.RESET, "gamma")
    assert world.fault() is None


def test_an_upstream_with_one_good_key_is_well() -> None:
    world = World()
    note = error("upstream_keys_exhausted")
    world.no_keys("beta")
    world.breaks(Trouble.QUOTA, KEYS["gamma"][0])
    assert world.fault(status=429, note=note) is Fault.FAILED
    world.breaks(Trouble.REVOKED, KEYS["gamma"][1])
    assert world.fault(status=429, note=note) is None


@pytest.mark.parametrize(
    ("code", "trouble", "fault"),
    [
        ("upstream_unreachable", Trouble.REFUSE, None),
        ("upstream_unreachable", Trouble.STALL, Fault.FAILED),
        ("upstream_timeout", Trouble.STALL, None),
        ("upstream_timeout", Trouble.STATUS, Fault.FAILED),
        ("upstream_circuit_open", Trouble.STATUS, None),
        ("upstream_keys_exhausted", Trouble.STATUS, Fault.FAILED),
        ("upstream_credentials_rejected", Trouble.RESET, Fault.FAILED),
        ("client_deadline", Trouble.STALL, Fault.FAILED),
        ("upstream_protocol_error", Trouble.BREAK, None),
    ],
)
def test_an_error_needs_a_reason_of_its_kind(
    code: str, trouble: Trouble, fault: Fault | None
) -> None:
    world = World()
    for upstream in ("beta", "gamma"):
        world.breaks(trouble, upstream)
    assert world.fault(note=error(code)) is fault


def test_a_refused_key_stays_so_while_its_upstream_answers_no_probe() -> None:
    world = World()
    rejected = failed("lonely")
    rejected.note = error("upstream_credentials_rejected")
    world.breaks(Trouble.REVOKED, KEYS["gamma"][1])
    assert world.fault(ask=rejected.ask, note=rejected.note) is Fault.FAILED
    world.breaks(Trouble.STALL, "gamma")
    assert world.fault(ask=rejected.ask, note=rejected.note) is None


def test_an_upstreams_own_error_needs_a_call_that_was_answered_so() -> None:
    world = World()
    for upstream in ("beta", "gamma"):
        world.breaks(Trouble.STATUS, upstream)
    own = {"status": 529, "note": error("server_error")}
    assert world.fault(**own) is Fault.FAILED
    world.call(DIGEST, status=503)
    assert world.fault(**own) is Fault.FAILED
    world.call(DIGEST, status=529)
    assert world.fault(**own) is None


def test_a_plain_answer_that_broke_is_asked_for_again_but_not_one_that_took_all_the_time() -> None:
    world = World()
    world.call(DIGEST, trouble=Trouble.BREAK)
    assert world.fault() is Fault.FAILED
    world.call(DIGEST, trouble=Trouble.TRICKLE)
    assert world.fault() is None


def test_what_passes_through_may_fail_where_its_own_call_did() -> None:
    world = World()
    ask = Ask("responses", "", {"input": "Hello"}, path="/responses")
    assert world.fault(ask=ask) is Fault.FAILED
    digest = through_digest(ask.path, ask.body)
    world.call(digest, "alpha")
    assert world.fault(ask=ask) is Fault.FAILED
    world.call(digest, "alpha", status=401)
    assert world.fault(ask=ask) is None


def test_time_that_is_over_by_the_clients_own_wish_needs_something_that_is_slow() -> None:
    world = World()
    late = replace(failed(**{HURRY_HEADER: "0.6"}), ended=NOW + 0.7)
    late.note = error("client_deadline")
    assert world.fault(ask=late.ask, ended=late.ended, note=late.note) is Fault.FAILED
    world.breaks(Trouble.SLOW, "beta")
    assert world.fault(ask=late.ask, ended=late.ended, note=late.note) is None
    assert world.fault(ask=late.ask, ended=NOW + 0.4, note=late.note) is Fault.FAILED


def test_so_does_time_that_is_over_for_all_tries() -> None:
    world = World()
    note = error("upstream_timeout")
    assert world.fault(note=note, ended=NOW + TOTAL_SECONDS) is Fault.FAILED
    world.breaks(Trouble.STALL, "beta")
    assert world.fault(note=note, ended=NOW + TOTAL_SECONDS) is None
    assert world.fault(note=note, ended=NOW + TOTAL_SECONDS - 0.1) is Fault.FAILED


# ---- answers that break off ----


@pytest.mark.parametrize("came", [Came.BROKEN, Came.NO_ANSWER])
def test_what_breaks_off_needs_a_dead_worker(came: Came) -> None:
    world = World()
    world.breaks(Trouble.STATUS, "beta")
    assert world.fault(came=came) is Fault.FAILED
    world.breaks(Trouble.KILLED, WORKER)
    assert world.fault(came=came) is None


def test_what_breaks_off_may_have_a_call_that_broke_in_its_body() -> None:
    world = World()
    world.call(DIGEST, trouble=Trouble.RESET)
    assert world.fault(came=Came.BROKEN) is Fault.FAILED
    world.call("0" * 16, trouble=Trouble.BREAK)
    assert world.fault(came=Came.BROKEN) is Fault.FAILED
    world.call(DIGEST, trouble=Trouble.BREAK)
    assert world.fault(came=Came.BROKEN) is None


def test_what_breaks_off_may_have_met_a_machine_that_stood_still_for_long_enough() -> None:
    world = World()
    world.breaks(Trouble.LATE, MACHINE, 0.1, 1.5)
    assert world.fault(came=Came.BROKEN, ended=NOW + 2.0) is Fault.FAILED
    world.breaks(Trouble.LATE, MACHINE, 1.4, 1.7)
    assert world.fault(came=Came.BROKEN, ended=NOW + 2.0) is None


def test_who_follows_another_workers_stream_may_lose_it_with_redis() -> None:
    world = World()
    world.breaks(Trouble.EMPTIED, REDIS)
    assert world.fault(came=Came.BROKEN) is Fault.FAILED
    assert world.fault(came=Came.BROKEN, cache_status="-; collapsed") is None


def test_what_ends_early_in_good_order_needs_a_call_that_did() -> None:
    world = World()
    world.call(DIGEST, trouble=Trouble.TRUNCATE)
    assert world.fault(came=Came.SHORTENED, status=200) is Fault.SHORTENED
    world.call(DIGEST, trouble=Trouble.SHORT)
    assert world.fault(came=Came.SHORTENED, status=200) is None


# ---- answers ----


def test_a_wrong_answer_is_a_fault_whatever_is_broken() -> None:
    world = World()
    for upstream in ("beta", "gamma"):
        world.breaks(Trouble.SHORT, upstream)
    world.call(DIGEST, trouble=Trouble.SHORT)
    assert world.fault(came=Came.WRONG) is Fault.WRONG


@pytest.mark.parametrize(
    ("x_cache", "seconds", "fault"),
    [
        ("HIT", 2.0, None),
        ("HIT", 4.0, Fault.TOO_OLD),
        ("STALE", 20.0, None),
        ("STALE", 24.0, Fault.TOO_OLD),
    ],
)
def test_an_answer_is_not_older_than_its_rule_allows(
    x_cache: str, seconds: float, fault: Fault | None
) -> None:
    world = World()
    for upstream in ("beta", "gamma"):
        world.breaks(Trouble.RESET, upstream)
    call = world.call(DIGEST, ended=NOW - seconds)
    stamps = (Stamp(DIGEST, 1, call.number, 0.0),)
    status = 'magic-proxy; fwd=stale; detail="stale-if-error:upstream_unreachable"'
    whole = {"came": Came.WHOLE, "status": 200, "stamps": stamps, "cache_status": status}
    assert world.fault(x_cache=x_cache, **whole) is fault


def test_an_answer_may_be_older_by_what_a_busy_machine_took_to_store_it() -> None:
    world = World()
    call = world.call(DIGEST, ended=NOW - 4.0)
    whole = {"came": Came.WHOLE, "status": 200, "x_cache": "HIT"}
    whole["stamps"] = (Stamp(DIGEST, 1, call.number, 0.0),)
    world.breaks(Trouble.BUSY, HASTE, -4.5, -3.5)
    assert world.fault(**whole) is Fault.TOO_OLD
    world.breaks(Trouble.BUSY, HASTE, -3.8, -2.9)
    assert world.fault(**whole) is None


def test_a_stale_answer_needs_what_its_error_would() -> None:
    world = World()
    call = world.call(DIGEST, ended=NOW - 4.0)
    whole = {"came": Came.WHOLE, "status": 200, "x_cache": "STALE"}
    whole["stamps"] = (Stamp(DIGEST, 1, call.number, 0.0),)
    whole["cache_status"] = '-; fwd=stale; ttl=-2; detail="stale-if-error:upstream_circuit_open"'
    world.breaks(Trouble.STATUS, "beta")
    assert world.fault(**whole) is Fault.STALE
    world.breaks(Trouble.STATUS, "gamma")
    assert world.fault(**whole) is None


def test_a_request_ends_in_time() -> None:
    world = World()
    for upstream in ("beta", "gamma"):
        world.breaks(Trouble.STALL, upstream)
    note = error("upstream_timeout")
    assert world.fault(note=note, ended=NOW + TOTAL_SECONDS + 1.9) is None
    assert world.fault(note=note, ended=NOW + TOTAL_SECONDS + 2.1) is Fault.STUCK
    assert world.fault(came=Came.HUNG) is Fault.STUCK


def test_who_followed_requests_that_failed_has_its_own_time_after_that() -> None:
    world = World()
    for upstream in ("beta", "gamma"):
        world.breaks(Trouble.TRICKLE, upstream)
    note = error("upstream_timeout")
    late = NOW + TOTAL_SECONDS + 1.9
    first = world.call(DIGEST, trouble=Trouble.TRICKLE, ended=NOW + 3.0)
    assert world.fault(note=note, ended=late + 3.0) is None
    assert world.fault(note=note, ended=late + 3.2) is Fault.STUCK
    first.began = NOW + 1.3  # too late for another's
    assert world.fault(note=note, ended=late + 3.0) is Fault.STUCK
    first.began = NOW - 0.5
    second = world.call(DIGEST, trouble=Trouble.TRICKLE, ended=NOW + 6.0)
    second.began = NOW + 3.1
    assert world.fault(note=note, ended=late + 6.0) is None
    hurried = failed(**{HURRY_HEADER: "2"}).ask
    assert world.fault(ask=hurried, note=note, ended=late) is Fault.STUCK


def test_a_busy_machine_makes_everything_late() -> None:
    world = World()
    world.breaks(Trouble.LATE, MACHINE, 0.1, 0.6)
    note = error("upstream_timeout")
    assert world.fault(note=note, ended=NOW + TOTAL_SECONDS + 2.4) is None
    assert world.fault(note=note, ended=NOW + TOTAL_SECONDS + 2.6) is Fault.STUCK


# ---- how long it can be felt ----


def test_a_window_is_felt_as_long_as_a_call_suffers_from_it_and_then_for_a_circuits_wait() -> None:
    window = Window(Trouble.STALL, "beta", began=10.0)
    assert window.until == inf
    window.suffers()
    window.ended = 12.0
    assert window.until == inf
    window.suffered(13.0)
    assert window.until == pytest.approx(13.0 + 2.0 * 1.2 + 1.5)
    short = Window(Trouble.STALL, "beta", began=10.0, ended=10.5)
    assert short.until == pytest.approx(10.5 + 1.0 * 1.2 + 1.5)


def test_a_key_rests_as_long_as_it_was_told_to() -> None:
    limited = Window(Trouble.LIMITED, "sk-beta-1", began=10.0, ended=12.0, rests=15.0)
    assert limited.until == pytest.approx(15.0 + 1.5)
    revoked = Window(Trouble.REVOKED, "sk-beta-1", began=10.0, ended=12.0, last=11.9)
    assert revoked.until == pytest.approx(12.0 + 2.0 + 0.5 + 1.5)


def test_a_key_that_rests_is_not_to_be_asked_once_everybody_knows() -> None:
    world = World()
    key = KEYS["beta"][0]
    world.ledger.rests(key, NOW, NOW + 3.0)
    world.ledger.rests(key, NOW + 0.1, NOW + 1.0)  # never shortened
    for moment in (0.2, 1.4, 3.1):
        world.ledger.called("beta", key, [DIGEST], NOW + moment)
    assert not world.ledger.restless
    world.ledger.called("beta", key, [DIGEST], NOW + 2.0)
    assert len(world.ledger.restless) == 1
    world.breaks(Trouble.FROZEN, REDIS)  # each works alone
    world.ledger.called("beta", key, [DIGEST], NOW + 2.0)
    assert len(world.ledger.restless) == 1


def test_a_minute_later_a_call_is_only_counted() -> None:
    world = World()
    world.call(DIGEST, trouble=Trouble.BREAK)
    world.ledger.called("alpha", KEYS["alpha"][0], ["1" * 16], NOW + 100.0)
    assert world.fault(came=Came.BROKEN) is Fault.FAILED
    assert world.ledger.total == 2
    assert world.ledger.under_way == 1


def test_a_call_that_does_not_end_in_a_minute_stays_under_way() -> None:
    world = World()
    world.call(DIGEST, ended=inf)
    world.call(DIGEST)
    last = world.ledger.called("alpha", KEYS["alpha"][0], ["1" * 16], NOW + 100.0)
    last.end(NOW + 100.1)
    assert world.ledger.under_way == 1


# ---- the account ----


def test_requests_are_counted_by_how_it_stood_with_their_chain() -> None:
    world = World()
    world.judge.judge(replace(failed("lonely"), came=Came.LEFT))
    world.breaks(Trouble.RESET, "gamma")
    world.judge.judge(replace(failed("tolerant"), came=Came.WHOLE, x_cache="HIT"))
    world.judge.judge(failed("lonely"))
    assert world.judge.accounts == {
        ("chat", Sky.CLEAR, Ended.LEFT): 1,
        ("chat", Sky.CLOUDED, Ended.HIT): 1,
        ("chat", Sky.OUT, Ended.FAILED): 1,
    }
