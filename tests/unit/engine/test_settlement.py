"""The account of a forwarded call: judged once, stored where it may be, told once."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import orjson
import pytest

from proxy.core.entry import Entry, Form, Usage
from proxy.core.matching import RuleSet
from proxy.core.outcome import Forwarded, MissReason, Outcome, XCache
from proxy.core.recording import NotStored, Recording
from proxy.core.rules import DEFAULT_FINISH_REASONS, Rule
from proxy.core.wire import Headers
from proxy.engine.account import Account
from proxy.engine.flight import Flight, Head
from proxy.engine.plan import make_plan
from proxy.engine.settlement import Settlement
from proxy.engine.write_behind import WriteLimits
from proxy.upstream.base import Exchange
from tests.unit.engine.kit import RULE, Engine, Said, ScriptedForwarder, call

pytestmark = pytest.mark.anyio

BODY = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
KEY = "p:v1:chat:shared:" + "0" * 64
USAGE = Usage(2, 1, 3)
GOOD = Recording(Form.JSON, b"{}", USAGE, ("stop",))
MISS = Outcome(
    XCache.MISS, "chat", forwarded=Forwarded.MISS, detail=MissReason.ABSENT.value, request_id="own"
)
NO_STORE: Headers = ((b"cache-control", b"no-store"),)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    running = Engine()
    yield running
    await running.stop()


@dataclass(frozen=True)
class Settled:
    """A settlement, and the account of the client whose request led to it."""

    flight: Flight
    account: Account
    settlement: Settlement

    @property
    def outcome(self) -> Outcome:
        head = Head(self.status, self.headers, is_stream=False, upstream="main")
        self.account.forwarded(self.flight, head, leads=True)
        return self.account.outcome

    @property
    def status(self) -> int:
        return self.settlement.exchange.response.status

    @property
    def headers(self) -> Headers:
        return self.settlement.exchange.response.headers

    @property
    def records(self) -> bool:
        return self.settlement.records

    @property
    def max_bytes(self) -> int:
        return self.settlement.max_bytes

    @property
    def finish_reasons(self) -> frozenset[str]:
        return self.settlement.finish_reasons

    def judge(self, verdict: Recording | NotStored, usage: Usage | None) -> None:
        self.settlement.judge(verdict, usage)

    def end(self, *, complete: bool) -> None:
        self.account.end(complete=complete, flight=self.flight)


def settling(
    engine: Engine,
    said: Said | None = None,
    *,
    rule: Rule = RULE,
    asked: Headers = (),
    store_key: str | None = KEY,
    fallback: bool = False,
    void: bool = False,
) -> Settled:
    started = engine.clock.monotonic()
    plan = make_plan(call(BODY, *asked), ScriptedForwarder(), RuleSet((rule,)), started=started)
    flight = Flight(plan, store_key, shared=False, finishes=True, stored_at=0.0)
    settlement = Settlement(
        plan,
        Exchange(said or Said(), "main", "second", fallback=fallback),
        store_key,
        entries=engine.entries,
        clock=engine.clock,
        began=started - 2.5,
        void=lambda: void,
    )
    flight.settlement = settlement
    return Settled(flight, Account(MISS, engine.witness, engine.clock, started), settlement)


def queued(engine: Engine) -> Entry | None:
    return engine.entries.get_now(KEY)


async def test_B14_what_is_good_becomes_an_entry(engine: Engine) -> None:
    headers = (
        (b"Content-Type", b"application/json"),
        (b"Set-Cookie", b"s"),
        (b"X-Request-ID", b"theirs"),
    )
    settlement = settling(engine, Said(headers=headers), fallback=True)
    now = engine.clock.wall()

    settlement.judge(GOOD, USAGE)

    assert queued(engine) == Entry(
        key=KEY,
        model="m",
        rule="all",
        stored_at=now,
        fresh_until=now + 60,
        expires_at=now + 60,
        form=Form.JSON,
        status=200,
        headers=((b"content-type", b"application/json"), (b"x-upstream-request-id", b"theirs")),
        usage=USAGE,
        payload=b"{}",
        profile="second",
        fallback=True,
        took_seconds=2.5,
    )
    outcome = settlement.outcome
    assert (outcome.stored, outcome.not_stored, outcome.ttl_seconds) == (True, None, 60.0)
    assert (outcome.upstream, outcome.usage, outcome.request_id) == ("main", USAGE, "theirs")


@pytest.mark.parametrize("verdict", list(NotStored))
async def test_B14_what_is_judged_unfit_is_told_and_not_stored(
    verdict: NotStored, engine: Engine
) -> None:
    settlement = settling(engine)

    settlement.judge(verdict, USAGE)

    assert queued(engine) is None
    outcome = settlement.outcome
    assert (outcome.stored, outcome.not_stored) == (False, verdict.value)
    assert (outcome.usage, outcome.ttl_seconds) == (USAGE, None)


@pytest.mark.parametrize(
    ("said", "asked", "honors", "reason"),
    [
        (Said(), NO_STORE, False, NotStored.CLIENT_NO_STORE),
        (Said(status=500), NO_STORE, False, NotStored.CLIENT_NO_STORE),
        (Said(status=500), (), False, NotStored.STATUS),
        (Said(status=206), (), False, NotStored.STATUS),
        (Said(headers=NO_STORE), (), True, NotStored.NO_LIFETIME),
        (Said(headers=((b"Cache-Control", b"max-age=0"),)), (), True, NotStored.NO_LIFETIME),
    ],
)
async def test_B13_B14_what_may_not_be_stored_is_known_before_the_body(
    said: Said, asked: Headers, honors: bool, reason: NotStored, engine: Engine
) -> None:
    settlement = settling(engine, said, asked=asked, rule=replace(RULE, honor_upstream=honors))

    assert not settlement.records
    assert settlement.outcome.not_stored == reason.value, "the answer's head tells it already"
    settlement.judge(GOOD, USAGE)

    assert queued(engine) is None
    assert settlement.outcome.not_stored == reason.value
    assert settlement.outcome.usage == USAGE, "it was billed all the same"
    assert settlement.outcome.status == said.status == settlement.outcome.forward_status


async def test_B12_where_the_cache_was_not_asked_nothing_is_said_of_storing(engine: Engine) -> None:
    settlement = settling(engine, Said(status=500), store_key=None)

    settlement.judge(GOOD, USAGE)

    assert not settlement.records
    assert (settlement.outcome.stored, settlement.outcome.not_stored) == (None, None)
    assert settlement.outcome.usage == USAGE
    assert len(engine.writes) == 0


async def test_B53_an_entry_for_which_the_queue_has_no_room_is_not_called_stored() -> None:
    engine = Engine(limits=WriteLimits(bytes=1))
    settlement = settling(engine)

    settlement.judge(GOOD, USAGE)

    assert (settlement.outcome.stored, settlement.outcome.not_stored) == (False, "queue-full")
    assert engine.witness.dropped == 1
    await engine.stop()


@pytest.mark.parametrize(
    ("first", "second"), [(NotStored.TRUNCATED, GOOD), (GOOD, NotStored.STATUS)]
)
async def test_B21_the_first_verdict_counts(
    first: Recording | NotStored, second: Recording | NotStored, engine: Engine
) -> None:
    settlement = settling(engine)

    settlement.judge(first, USAGE)
    before = settlement.outcome
    settlement.judge(second, None)

    assert settlement.outcome == before
    assert len(engine.writes) == (first is GOOD)


async def test_B41_what_was_made_under_a_lost_lease_is_not_stored(engine: Engine) -> None:
    settlement = settling(engine, void=True)

    settlement.judge(GOOD, USAGE)

    assert queued(engine) is None
    assert settlement.outcome.not_stored == "lease-lost"


async def test_B15_an_entry_is_kept_for_as_long_as_it_may_be_served_stale(engine: Engine) -> None:
    rule = replace(RULE, stale_while_revalidate_seconds=5.0, stale_if_error_seconds=30.0)

    settling(engine, rule=rule).judge(GOOD, USAGE)

    entry = queued(engine)
    assert entry is not None
    assert (entry.fresh_until - entry.stored_at, entry.expires_at - entry.stored_at) == (60, 90)


async def test_B15_jitter_shortens_by_its_share_at_most_and_by_the_key(engine: Engine) -> None:
    settlement = settling(engine, rule=replace(RULE, ttl_jitter=0.5))

    settlement.judge(GOOD, USAGE)

    entry = queued(engine)
    assert entry is not None
    digest = settlement.settlement.plan.derivation.key
    assert digest is not None
    share = int(digest.digest[:8], 16) / 0xFFFFFFFF
    assert entry.fresh_until - entry.stored_at == pytest.approx(60 * (1 - 0.5 * share))


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)])
async def test_B16_the_outcome_is_told_once(first: bool, second: bool, engine: Engine) -> None:
    settlement = settling(engine)
    settlement.judge(GOOD, USAGE)
    engine.clock.advance(1.5)

    settlement.end(complete=first)
    engine.clock.advance(5)
    settlement.end(complete=second)

    (told,) = engine.witness.outcomes
    assert (told.complete, told.duration_seconds, told.stored) == (first, 1.5, True)


@pytest.mark.parametrize(
    ("headers", "shown"),
    [((), "own"), (((b"x-request-id", b""),), "own"), (((b"X-Request-Id", b"r"),), "r")],
)
async def test_B17_the_request_id_is_the_upstream_s_where_it_gives_one(
    headers: Headers, shown: str, engine: Engine
) -> None:
    assert settling(engine, Said(headers=headers)).outcome.request_id == shown


async def test_B14_B56_only_what_may_become_an_entry_is_held_to_the_rule_s_size(
    engine: Engine,
) -> None:
    rule = replace(RULE, max_entry_bytes=5_000_000, store_finish_reasons=frozenset({"length"}))

    assert settling(engine, rule=rule).max_bytes == 5_000_000
    assert settling(engine, rule=rule).finish_reasons == {"length"}
    for other in (
        settling(engine, rule=rule, store_key=None),
        settling(engine, rule=rule, asked=NO_STORE),
        settling(engine, Said(status=500), rule=rule),
    ):
        assert other.max_bytes == 1024 * 1024


async def test_B14_without_a_rule_the_usual_finish_reasons_hold(engine: Engine) -> None:
    other = replace(RULE, model_names=("another",))
    settlement = settling(engine, rule=other, store_key=None)

    assert settlement.finish_reasons == DEFAULT_FINISH_REASONS
    assert settlement.max_bytes == 1024 * 1024


@pytest.mark.parametrize(
    ("said", "fallback", "ttl"),
    [
        (None, False, 600.0),
        (None, True, 300.0),
        (
            Said(headers=((b"Cache-Control", b"public"), (b"cache-control", b"max-age=7"))),
            True,
            7.0,
        ),
    ],
)
async def test_B15_B67_an_entry_lives_as_long_as_it_may(
    said: Said | None, fallback: bool, ttl: float, engine: Engine
) -> None:
    rule = replace(RULE, ttl_seconds=600.0, honor_upstream=True)
    settlement = settling(engine, said, rule=rule, fallback=fallback)

    settlement.judge(GOOD, None)

    assert settlement.outcome.ttl_seconds == ttl
    entry = queued(engine)
    assert entry is not None
    assert entry.fresh_until - entry.stored_at == entry.expires_at - entry.stored_at == ttl
