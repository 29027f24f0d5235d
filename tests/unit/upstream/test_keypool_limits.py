"""The key pool with limits: who is chosen, who has to wait, what is never passed."""

from collections import Counter, deque
from copy import deepcopy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.upstream.allowance import Need
from proxy.upstream.config import KeySecret
from proxy.upstream.keypool import KeyPool, Lease
from proxy.upstream.limits_told import ToldLimit, ToldLimits
from proxy.upstream.pooled_key import KeyNews, KeyState
from proxy.upstream.verdict import KeyLimited, KeyRejected, KeyWorks

ANY = Need()


def key(
    name: str, weight: float = 1.0, rpm: int | None = None, tpm: int | None = None
) -> KeySecret:
    return KeySecret(f"sk-{name}", weight, rpm, tpm)


def used(keys: KeyPool, now: float = 0.0, need: Need = ANY) -> int | None:
    """One request from start to end; the number of the key it took."""
    lease = keys.acquire(now, need=need)
    if lease is None:
        return None
    keys.report(lease, KeyWorks(), now)
    keys.release(lease)
    return lease.index


def told(keys: KeyPool, number: int, remaining: int, *, now: float = 0.0, model: str = "") -> None:
    """An answer for the key says how much is left of 100 requests, all of them in a minute."""
    others = {0, 1, 2} - {number}
    lease = keys.acquire(now, others, need=Need(model))
    assert lease is not None
    keys.told(lease, ToldLimits(requests=ToldLimit(100, remaining, 60.0)), now)
    keys.release(lease)


def test_B62_a_key_at_its_limit_rests_until_its_minute_allows() -> None:
    keys = KeyPool([key("a", rpm=3), key("b", rpm=2)])
    assert Counter(used(keys, 10.5) for _ in range(6)) == {0: 3, 1: 2, None: 1}
    assert keys.exhausted(10.5)
    assert keys.soonest(10.5) == pytest.approx(60.5)
    status = keys.states(10.5)[0]
    assert (status.state, status.headroom) == (KeyState.COOLING, 0.0)
    assert status.reason == "its limit is used up"
    assert used(keys, 70.4) is None
    assert used(keys, 71.0) is not None


def test_B62_tokens_are_estimated_then_corrected_by_what_was_billed() -> None:
    keys = KeyPool([key("a", tpm=1000)])
    need = Need(prompt_tokens=400, output_tokens=300)
    lease = keys.acquire(0.0, need=need)
    assert lease is not None
    assert keys.acquire(0.0, need=need) is None
    keys.release(lease)
    keys.spent(lease, 250)
    assert keys.states(0.0)[0].limits[0].left == 750
    assert keys.acquire(0.0, need=need) is not None


def test_B62_a_request_larger_than_the_limit_goes_alone() -> None:
    keys = KeyPool([key("a", tpm=100)])
    huge = Need(prompt_tokens=5000)
    assert used(keys, 0.0, huge) == 0
    assert used(keys, 1.0, Need(prompt_tokens=1)) is None
    assert used(keys, 61.0, huge) == 0


def test_B62_the_key_with_the_most_headroom_is_taken() -> None:
    keys = KeyPool([key("a"), key("b"), key("c")])
    told(keys, 0, 20)
    told(keys, 1, 90)
    told(keys, 2, 50)
    assert {used(keys) for _ in range(20)} == {1}


def test_B62_keys_with_about_the_same_headroom_take_turns_by_weight() -> None:
    keys = KeyPool([key("a", rpm=100_000), key("b", weight=3.0, rpm=100_000)])
    assert Counter(used(keys) for _ in range(400)) == {0: 100, 1: 300}


def test_B62_a_key_without_a_known_limit_is_as_good_as_the_best() -> None:
    keys = KeyPool([key("a"), key("b"), key("c")])
    told(keys, 1, 99)
    told(keys, 2, 10)
    turns = Counter(used(keys) for _ in range(8))
    assert turns.keys() == {0, 1}
    assert turns[0] in {3, 4, 5}


def test_B62_a_limit_told_for_one_model_does_not_hold_up_another() -> None:
    keys = KeyPool([key("a")])
    told(keys, 0, 0, model="large")
    assert used(keys, 0.0, Need("large")) is None
    assert keys.soonest(0.0, Need("large")) == pytest.approx(0.6)
    assert keys.exhausted(0.0, Need("large"))
    assert used(keys, 0.0, Need("small")) == 0
    assert used(keys, 0.7, Need("large")) == 0


def test_B62_what_is_told_of_tokens_holds_back_what_does_not_fit_by_its_prompt() -> None:
    keys = KeyPool([key("a")])
    lease = keys.acquire(0.0)
    assert lease is not None
    assert not keys.counts_tokens("")
    keys.told(lease, ToldLimits(tokens=ToldLimit(6000, 100, 59.0)), 0.0)
    keys.release(lease)
    assert keys.counts_tokens("")
    assert used(keys, 0.0, Need(prompt_tokens=200)) is None
    assert used(keys, 0.0, Need(prompt_tokens=50, output_tokens=100_000)) == 0


def test_B62_a_probe_too_keeps_to_the_limit() -> None:
    keys = KeyPool([key("a", rpm=1)], retire_seconds=1.0)
    lease = keys.acquire(0.0)
    assert lease is not None
    keys.report(lease, KeyRejected("status 401"), 0.0)
    keys.release(lease)
    assert keys.acquire(2.0) is None
    assert keys.exhausted(2.0)
    probe = keys.acquire(61.0)
    assert probe is not None
    assert probe.probe


PREFIXES = [bytes([number]) * 16 for number in range(200)]


def chosen(keys: KeyPool, prefix: bytes, now: float = 0.0) -> int | None:
    return used(keys, now, Need(prefix=prefix))


def test_B62_the_same_prefix_goes_to_the_same_key_in_every_worker() -> None:
    one, other = (KeyPool([key("a"), key("b"), key("c")]) for _ in range(2))
    for _ in range(7):
        used(other)
    first = [chosen(one, prefix) for prefix in PREFIXES]
    assert [chosen(other, prefix) for prefix in PREFIXES] == first
    assert [chosen(one, prefix) for prefix in PREFIXES] == first
    assert all(first.count(number) > 40 for number in range(3)), "spread over all"


def test_B62_prefixes_are_spread_by_weight() -> None:
    keys = KeyPool([key("a"), key("b", weight=3.0)])
    prefixes = [number.to_bytes(16) for number in range(2000)]
    assert 1400 < [chosen(keys, prefix) for prefix in prefixes].count(1) < 1600


def test_B62_a_key_that_rests_moves_only_its_own_prefixes_and_gets_them_back() -> None:
    keys = KeyPool([key("a"), key("b"), key("c")])
    before = [chosen(keys, prefix) for prefix in PREFIXES]
    lease = keys.acquire(0.0, {1, 2})
    assert lease is not None
    keys.report(lease, KeyLimited(10.0), 0.0)
    keys.release(lease)
    meanwhile = [chosen(keys, prefix) for prefix in PREFIXES]
    assert 0 not in meanwhile
    assert all(now == old for old, now in zip(before, meanwhile, strict=True) if old != 0)
    assert [chosen(keys, prefix, 11.0) for prefix in PREFIXES] == before


def test_B62_a_preferred_key_without_headroom_is_left_for_the_next() -> None:
    keys = KeyPool([key("a"), key("b"), key("c")])
    prefix = next(prefix for prefix in PREFIXES if chosen(keys, prefix) == 0)
    told(keys, 0, 11)
    assert chosen(keys, prefix) == 0
    told(keys, 0, 9)
    second = chosen(keys, prefix)
    assert second in {1, 2}
    for number in (1, 2):
        told(keys, number, 5)
    assert chosen(keys, prefix) is not None, "nobody has headroom: whoever there is"


def test_B62_B69_new_keys_are_taken_those_that_stay_are_known_and_those_that_go_finish() -> None:
    keys = KeyPool([key("a"), key("b")])
    limited, leaving = keys.acquire(0.0, {1}), keys.acquire(0.0, {0})
    assert limited is not None
    assert leaving is not None
    keys.report(limited, KeyLimited(30.0), 0.0)
    keys.have([key("c"), key("a", weight=2.0)])
    assert len(keys) == 2
    assert [status.state for status in keys.states(0.0)] == [KeyState.AVAILABLE, KeyState.COOLING]
    fresh = keys.acquire(0.0)
    assert fresh is not None
    assert fresh.index not in {0, 1}, "a number is never used again"
    keys.report(leaving, KeyRejected("status 401"), 0.0)
    keys.release(leaving)
    keys.spent(leaving, 10)
    assert [status.in_flight for status in keys.states(0.0)] == [1, 1]


def test_B62_a_key_that_is_named_twice_counts_once() -> None:
    keys = KeyPool([key("a", weight=2.0, rpm=1), key("b"), key("a")])
    assert len(keys) == 2
    assert Counter(used(keys) for _ in range(5)) == {0: 1, 1: 4}


def test_B62_a_reload_goes_on_with_the_windows_and_what_is_in_flight() -> None:
    old = KeyPool([key("a", rpm=2)])
    held = old.acquire(0.0)
    assert held is not None
    new = KeyPool([key("a", rpm=2)])
    new.take_over(old)
    assert new.states(0.0)[0].in_flight == 1
    assert used(new, 0.0) == 0
    assert used(new, 0.0) is None
    assert used(old, 0.0) is None
    heard: list[int] = []
    new.on_news = lambda: heard.append(1)
    old.report(held, KeyLimited(90.0), 0.0)
    old.release(held)
    assert new.states(0.0)[0].in_flight == 0
    assert new.soonest(0.0) == 90.0
    assert new.news(0.0)[key("a").digest].cooling_seconds == 90.0, "it is told by the new one"


def test_B66_news_are_told_once_as_they_stand_then() -> None:
    keys = KeyPool([key("a"), key("b")], retire_seconds=600.0)
    heard: list[int] = []
    keys.on_news = lambda: heard.append(1)
    for _ in range(3):
        lease = keys.acquire(0.0, {1}) or keys.acquire(30.0, {1})
        assert lease is not None
        keys.report(lease, KeyLimited(30.0), 0.0)
        keys.release(lease)
    assert heard == [1], "many changes are one waking"
    assert keys.news(10.0) == {
        key("a").digest: KeyNews(cooling_seconds=20.0, reason="rate limited")
    }
    assert keys.news(10.0) == {}


def test_B66_what_others_learned_counts_here_and_shortens_nothing() -> None:
    keys = KeyPool([key("a"), key("b")], retire_seconds=600.0)
    changed = keys.learn(key("a").digest, KeyNews(cooling_seconds=30.0, reason="limited"), 0.0)
    assert [change.after for change in changed] == [KeyState.COOLING]
    assert keys.learn(key("a").digest, KeyNews(cooling_seconds=5.0), 0.0) == []
    assert keys.soonest(0.0) == 30.0
    changed = keys.learn(key("b").digest, KeyNews(retired_seconds=60.0, rejections=1), 0.0)
    assert [change.after for change in changed] == [KeyState.RETIRED]
    assert keys.learn("0" * 32, KeyNews(retired_seconds=60.0), 0.0) == []
    assert keys.news(0.0) == {}, "what others told is not told back"
    changed = keys.learn(key("b").digest, KeyNews(restored=True), 1.0)
    assert [change.after for change in changed] == [KeyState.AVAILABLE]


def test_B66_a_probe_that_works_is_told_and_not_undone_by_what_the_others_still_say() -> None:
    keys = KeyPool([key("a")], retire_seconds=10.0)
    lease = keys.acquire(0.0)
    assert lease is not None
    keys.report(lease, KeyRejected("status 401"), 0.0)
    keys.release(lease)
    keys.news(0.0)
    assert used(keys, 10.0) == 0
    keys.learn(key("a").digest, KeyNews(retired_seconds=5.0, rejections=1), 10.0)
    assert keys.states(10.0)[0].state is KeyState.AVAILABLE
    assert keys.news(10.0)[key("a").digest].restored
    assert not keys.standing(10.0)


class LimitedPool(RuleBasedStateMachine):
    """Requests, answers, news and new sets of keys in any order; limits hold in any minute."""

    LIMITS = ((5, 1_000), (3, None), (None, 400))

    def __init__(self) -> None:
        super().__init__()
        self.secrets = [key(str(i), rpm=r, tpm=t) for i, (r, t) in enumerate(self.LIMITS)]
        self.pool = KeyPool(self.secrets, cooldown_seconds=5.0, retire_seconds=20.0)
        self.now = 0.0
        self.leases: list[Lease] = []
        self.given: dict[str, deque[tuple[float, int]]] = {s.value: deque() for s in self.secrets}
        self.cool_until = dict.fromkeys(self.given, 0.0)

    @rule(seconds=st.floats(0.0, 40.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        prompt=st.integers(0, 300),
        output=st.integers(0, 300),
        model=st.sampled_from(["", "m"]),
        prefix=st.sampled_from([None, b"p" * 16]),
    )
    def acquire(self, prompt: int, output: int, model: str, prefix: bytes | None) -> None:
        need = Need(model, prompt, output, prefix)
        lease = self.pool.acquire(self.now, need=need)
        if lease is None:
            return
        value = lease.secret.value
        assert self.cool_until[value] <= self.now
        given = self.given[value]
        while given and given[0][0] <= self.now - 60.0:
            given.popleft()
        given.append((self.now, need.tokens))
        rpm, tpm = lease.secret.requests_per_minute, lease.secret.tokens_per_minute
        assert rpm is None or len(given) <= rpm
        tokens = [tokens for _, tokens in given]
        assert tpm is None or sum(tokens) <= tpm or sum(tokens) == tokens[-1]
        self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(
        pick=st.randoms(use_true_random=False),
        seconds=st.none() | st.floats(0.0, 50.0),
        remaining=st.none() | st.integers(0, 20),
        costs=st.integers(0, 400),
    )
    def answer(
        self, pick: object, seconds: float | None, remaining: int | None, costs: int
    ) -> None:
        lease: Lease = pick.choice(self.leases)  # type: ignore[attr-defined]
        if remaining is not None:
            self.pool.told(lease, ToldLimits(requests=ToldLimit(20, remaining, 10.0)), self.now)
        if seconds is not None:
            self.pool.report(lease, KeyLimited(seconds), self.now)
            self._cools(lease.secret.value, seconds)
        # An answer that cost more than was thought is no fault of the pool: never more here.
        given = self.given[lease.secret.value]
        for place, (at, tokens) in enumerate(given):
            if at == lease.taken_at and tokens == lease.need.tokens:
                given[place] = (at, min(costs, tokens))
                break
        self.leases.remove(lease)
        self.pool.release(lease)
        self.pool.spent(lease, min(costs, lease.need.tokens))

    @rule(number=st.integers(0, 2), seconds=st.floats(0.0, 50.0))
    def others_tell(self, number: int, seconds: float) -> None:
        secret = self.secrets[number]
        self.pool.learn(secret.digest, KeyNews(cooling_seconds=seconds), self.now)
        if seconds > 0.1:
            self._cools(secret.value, seconds - 0.1)

    @rule()
    def reload(self) -> None:
        pool = KeyPool(self.secrets, cooldown_seconds=5.0, retire_seconds=20.0)
        if not self.leases:  # a lease is given back where it was taken
            pool.take_over(self.pool)
            self.pool = pool

    @rule()
    def keys_are_read_again(self) -> None:
        self.pool.have(list(reversed(self.secrets)))

    def _cools(self, value: str, seconds: float) -> None:
        self.cool_until[value] = max(self.cool_until[value], self.now + seconds)

    @invariant()
    def in_flight_is_what_is_leased(self) -> None:
        expected = Counter(lease.secret.fingerprint for lease in self.leases)
        for status in self.pool.states(self.now):
            assert status.in_flight == expected[status.fingerprint]

    @invariant()
    def it_is_short_where_a_key_is_told_to_be_out(self) -> None:
        states = {status.state for status in self.pool.states(self.now)}
        assert self.pool.is_short(self.now) == (states != {KeyState.AVAILABLE})

    @invariant()
    def a_wait_that_is_told_comes_to_an_end(self) -> None:
        if self.pool.exhausted(self.now):
            soonest = self.pool.soonest(self.now)
            assert soonest is not None
            # A copy sees the future: the pool itself must not forget what counts until then.
            assert not deepcopy(self.pool).exhausted(self.now + soonest + 0.001)


LimitedPool.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestLimitedPoolMachine = LimitedPool.TestCase
