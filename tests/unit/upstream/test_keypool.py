"""The key pool: examples that read as a story, and a machine that tries everything."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.upstream.config import KeySecret
from proxy.upstream.keypool import KeyPool, Lease
from proxy.upstream.pooled_key import KeyState
from proxy.upstream.verdict import KeyLimited, KeyRejected, KeyWorks, Neutral, UpstreamFault

A, B, C = (KeySecret(f"sk-{name}") for name in "abc")


def pool(*keys: KeySecret) -> KeyPool:
    return KeyPool(keys, cooldown_seconds=20.0, quota_cooldown_seconds=3600.0, retire_seconds=600.0)


def taken(keys: KeyPool, now: float = 0.0, excluded: tuple[int, ...] = ()) -> Lease:
    lease = keys.acquire(now, excluded)
    assert lease is not None
    return lease


def use(keys: KeyPool, verdict: object, now: float = 0.0) -> int:
    """One request from start to end; the index of the key it took."""
    lease = taken(keys, now)
    keys.report(lease, verdict, now)  # type: ignore[arg-type]
    keys.release(lease)
    return lease.index


def states(keys: KeyPool, now: float = 0.0) -> list[KeyState]:
    return [status.state for status in keys.states(now)]


def test_B62_the_key_with_the_least_in_flight_is_taken() -> None:
    keys = pool(A, B)
    first, second = taken(keys), taken(keys)
    assert (first.index, second.index) == (0, 1)
    keys.release(second)
    assert taken(keys).index == 1
    assert [status.in_flight for status in keys.states(0.0)] == [1, 1]


def test_B62_idle_keys_take_turns() -> None:
    keys = pool(A, B, C)
    assert [use(keys, KeyWorks()) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_B62_turns_and_load_follow_the_weights() -> None:
    heavy = KeySecret("sk-heavy", weight=3.0)
    keys = pool(A, heavy)
    turns = [use(keys, KeyWorks()) for _ in range(40)]
    assert turns.count(1) == 30
    keys = pool(A, heavy)
    load = [taken(keys).index for _ in range(40)]
    assert load.count(1) == 30


def test_B62_a_key_that_was_away_gets_no_backlog_of_turns() -> None:
    keys = pool(A, B)
    use(keys, KeyLimited(100.0))
    for _ in range(50):
        assert use(keys, KeyWorks()) == 1
    later = [use(keys, KeyWorks(), 100.0) for _ in range(10)]
    assert later.count(0) in {5, 6}


def test_B62_a_limited_key_cools_until_its_time() -> None:
    keys = pool(A, B)
    lease = taken(keys)
    transition = keys.report(lease, KeyLimited(7.0), 0.0)
    assert transition is not None
    assert transition.after is KeyState.COOLING
    assert transition.seconds == 7.0
    assert transition.fingerprint == A.fingerprint
    keys.release(lease)
    assert {use(keys, KeyWorks(), 6.9) for _ in range(3)} == {1}
    assert {use(keys, KeyWorks(), 7.0) for _ in range(3)} == {0, 1}


def test_B62_a_pool_made_anew_goes_on_with_what_was_learned() -> None:
    old = pool(A, B, C)
    use(old, KeyLimited(50.0))
    use(old, KeyRejected("unknown"))

    new = pool(C, B, A)
    new.take_over(old)

    assert states(new) == [KeyState.AVAILABLE, KeyState.RETIRED, KeyState.COOLING]
    assert new.soonest(10.0) == 40.0
    assert [status.in_flight for status in new.states(0.0)] == [0, 0, 0]


def test_B62_a_limit_without_a_time_cools_for_the_settings_time() -> None:
    keys = pool(A)
    use(keys, KeyLimited(None))
    assert keys.soonest(0.0) == 20.0


def test_B62_a_used_up_quota_cools_for_long_whatever_the_header_says() -> None:
    keys = pool(A)
    use(keys, KeyLimited(1.0, quota=True))
    assert keys.soonest(0.0) == 3600.0


def test_B62_a_later_answer_never_shortens_the_time() -> None:
    keys = pool(A)
    first, second = taken(keys), taken(keys)
    assert keys.report(first, KeyLimited(60.0), 0.0) is not None
    assert keys.report(second, KeyLimited(1.0), 1.0) is None, "one change, one line"
    assert keys.soonest(1.0) == 59.0


def test_B62_a_success_from_before_does_not_end_the_cooling() -> None:
    keys = pool(A)
    first, second = taken(keys), taken(keys)
    keys.report(first, KeyLimited(60.0), 0.0)
    keys.report(second, KeyWorks(), 1.0)
    assert keys.acquire(1.0) is None


def test_B62_the_end_of_cooling_is_told_once() -> None:
    keys = pool(A)
    use(keys, KeyLimited(5.0))
    assert keys.settle(4.0) == []
    assert [t.after for t in keys.settle(5.0)] == [KeyState.AVAILABLE]
    assert keys.settle(5.0) == []


@pytest.mark.parametrize("verdict", [Neutral(), UpstreamFault("status 500"), KeyWorks()])
def test_B62_nothing_else_touches_a_key(verdict: object) -> None:
    keys = pool(A)
    use(keys, verdict)
    assert states(keys) == [KeyState.AVAILABLE]
    assert keys.acquire(0.0) is not None


def test_B62_a_rejected_key_is_probed_by_one_request_at_a_time() -> None:
    keys = pool(A, B)
    use(keys, KeyRejected("status 401"))
    assert {use(keys, KeyWorks(), 599.0) for _ in range(4)} == {1}
    probe = taken(keys, 600.0)
    assert (probe.index, probe.probe) == (0, True), "it comes first, else it would never return"
    assert taken(keys, 600.0).index == 1
    transition = keys.report(probe, KeyWorks(), 601.0)
    assert transition is not None
    assert transition.after is KeyState.AVAILABLE
    keys.release(probe)
    assert states(keys) == [KeyState.AVAILABLE, KeyState.AVAILABLE]


def test_B62_where_all_keys_are_retired_one_is_tried_now_and_then() -> None:
    keys = pool(A, B)
    use(keys, KeyRejected("status 401"), 0.0)
    use(keys, KeyRejected("status 401"), 1.0)
    assert keys.exhausted(5.0)
    assert keys.acquire(5.0) is None
    assert not keys.exhausted(6.0)
    assert use(keys, KeyRejected("status 401"), 6.0) == 0
    assert keys.acquire(10.0) is None
    waiting = [status.seconds for status in keys.states(10.0)]
    assert waiting == [590.0, 591.0], "tried too early, it rests no longer for it"
    assert use(keys, KeyWorks(), 11.0) == 1
    assert states(keys, 11.0) == [KeyState.RETIRED, KeyState.AVAILABLE]
    assert {use(keys, KeyWorks(), 30.0) for _ in range(3)} == {1}, "now one is left that works"


def test_B62_a_reload_has_none_of_them_tried_sooner() -> None:
    keys, after = pool(A), pool(A)
    use(keys, KeyRejected("status 401"))
    after.take_over(keys)
    assert after.acquire(4.0) is None
    assert after.acquire(5.0) is not None


@pytest.mark.parametrize("shows", [KeyWorks(), KeyLimited(1.0)])
def test_B62_a_key_that_was_taken_back_before_its_time_starts_anew(shows: object) -> None:
    keys = pool(A)
    use(keys, KeyRejected("status 401"), 0.0)
    use(keys, KeyRejected("status 401"), 600.0)
    use(keys, shows, 610.0)
    use(keys, KeyRejected("status 401"), 620.0)
    assert keys.states(620.0)[0].seconds == 600.0


def test_B62_a_key_whose_quota_is_used_up_is_not_tried_for_want_of_others() -> None:
    keys = pool(A, B)
    use(keys, KeyRejected("status 401"))
    use(keys, KeyLimited(None, quota=True))
    assert keys.acquire(500.0) is None


def test_B62_a_failed_probe_retires_for_twice_as_long() -> None:
    keys = pool(A)
    use(keys, KeyRejected("status 401"), 0.0)
    use(keys, KeyRejected("status 401"), 600.0)
    assert keys.states(600.0)[0].seconds == 1_200.0
    use(keys, KeyWorks(), 1_800.0)
    use(keys, KeyRejected("status 401"), 1_801.0)
    assert keys.states(1_801.0)[0].seconds == 600.0, "a success starts anew"


def test_B66_probes_of_several_replicas_at_once_are_one_rejection() -> None:
    mine, others = pool(A), pool(A)
    use(others, KeyRejected("status 401"), 0.0)
    for digest, news in others.news(0.0).items():
        mine.learn(digest, news, 0.0)
    probe = taken(mine, 600.0)
    use(others, KeyRejected("status 401"), 600.0)
    for digest, news in others.news(600.0).items():
        mine.learn(digest, news, 600.0)

    mine.report(probe, KeyRejected("status 401"), 600.5)
    mine.release(probe)

    assert mine.states(600.5)[0].seconds == 1_200.0
    assert mine.news(600.5)[A.digest].rejections == 2


def test_B62_retirement_is_at_most_a_day() -> None:
    keys = pool(A)
    now = 0.0
    for _ in range(40):
        use(keys, KeyRejected("status 401"), now)
        now += keys.states(now)[0].seconds
    use(keys, KeyRejected("status 401"), now)
    assert keys.states(now)[0].seconds == 86_400.0


@pytest.mark.parametrize("verdict", [None, Neutral(), UpstreamFault("reset")])
def test_B62_a_probe_that_shows_nothing_leaves_the_next_one_due(verdict: object) -> None:
    keys = pool(A)
    use(keys, KeyRejected("status 401"))
    probe = taken(keys, 600.0)
    assert keys.acquire(600.0) is None
    if verdict is not None:
        keys.report(probe, verdict, 600.0)  # type: ignore[arg-type]
    keys.release(probe)
    assert taken(keys, 600.0).probe


def test_B62_a_probe_that_meets_a_limit_shows_that_the_key_is_taken() -> None:
    keys = pool(A)
    use(keys, KeyRejected("status 401"))
    use(keys, KeyLimited(5.0), 600.0)
    assert states(keys, 600.0) == [KeyState.COOLING]
    assert not taken(keys, 605.0).probe


def test_B62_requests_that_were_under_way_do_not_retire_twice_or_bring_back() -> None:
    keys = pool(A)
    first, second, third = taken(keys), taken(keys), taken(keys)
    assert keys.report(first, KeyRejected("status 401"), 0.0) is not None
    assert keys.report(second, KeyRejected("status 401"), 1.0) is None
    assert keys.report(third, KeyWorks(), 2.0) is None
    assert keys.states(0.0)[0].seconds == 600.0
    assert states(keys) == [KeyState.RETIRED]


def test_B62_a_limit_from_before_the_rejection_does_not_bring_the_key_back() -> None:
    keys = pool(A)
    first, second = taken(keys), taken(keys)
    keys.report(first, KeyRejected("status 401"), 0.0)
    assert keys.report(second, KeyLimited(5.0), 0.0) is None
    assert states(keys) == [KeyState.RETIRED]
    assert keys.soonest(0.0) is None, "its time is no promise: it may be rejected again"


def test_B62_what_cannot_be_sent_twice_does_not_probe_while_others_work() -> None:
    keys = pool(A, B)
    use(keys, KeyRejected("status 401"))
    lease = keys.acquire(600.0, may_probe=False)
    assert lease is not None
    assert lease.index == 1
    last = keys.acquire(600.0, {1}, may_probe=False)
    assert last is not None
    assert last.probe


def test_B64_the_soonest_is_that_of_the_cooling_keys() -> None:
    keys = pool(A, B, C)
    assert keys.soonest(0.0) is None
    for seconds in (30.0, 10.0):
        use(keys, KeyLimited(seconds))
    use(keys, KeyRejected("status 401"))
    assert keys.exhausted(0.0)
    assert keys.soonest(4.0) == 6.0
    assert not keys.exhausted(10.0)


def test_B63_excluded_keys_are_not_taken() -> None:
    keys = pool(A, B)
    assert taken(keys, excluded=(0,)).index == 1
    assert keys.acquire(0.0, (0, 1)) is None
    assert not keys.exhausted(0.0)


def test_B69_secrets_are_not_in_a_repr() -> None:
    keys = pool(A)
    lease = taken(keys)
    assert "sk-a" not in repr((A, lease, keys, keys.states(0.0)))
    assert A.fingerprint.startswith("key-")
    assert len(A.fingerprint) == 12


def test_a_key_without_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        pool(KeySecret("sk", weight=0.0))


VERDICTS = st.one_of(
    st.builds(KeyLimited, st.none() | st.floats(0.0, 100.0), st.booleans()),
    st.just(KeyRejected("status 401")),
    st.just(KeyWorks()),
    st.just(Neutral()),
    st.just(UpstreamFault("status 500")),
)


class Pool(RuleBasedStateMachine):
    """Requests come and go in any order; what must always hold is in the invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = (1.0, 2.0, 0.5)
        self.pool = KeyPool(
            [KeySecret(f"sk-{i}", weight) for i, weight in enumerate(self.weights)],
            cooldown_seconds=20.0,
            quota_cooldown_seconds=300.0,
            retire_seconds=50.0,
        )
        self.now = 0.0
        self.leases: list[Lease] = []
        self.cool_until = [0.0, 0.0, 0.0]

    @rule(seconds=st.floats(0.0, 60.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(excluded=st.sets(st.integers(0, 2)), may_probe=st.booleans())
    def acquire(self, excluded: set[int], may_probe: bool) -> None:
        before = self.pool.states(self.now)
        lease = self.pool.acquire(self.now, excluded, may_probe=may_probe)
        if lease is None:
            return
        assert lease.index not in excluded
        assert self.cool_until[lease.index] <= self.now
        if lease.probe:
            assert before[lease.index].state is KeyState.RETIRED
            assert not any(held.probe and held.index == lease.index for held in self.leases)
        else:
            assert before[lease.index].state is KeyState.AVAILABLE
            least = min(
                status.in_flight / self.weights[index]
                for index, status in enumerate(before)
                if index not in excluded and status.state is KeyState.AVAILABLE
            )
            assert before[lease.index].in_flight / self.weights[lease.index] == least
        self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(pick=st.randoms(use_true_random=False), verdict=VERDICTS, ends=st.booleans())
    def report(self, pick: object, verdict: object, ends: bool) -> None:
        lease = pick.choice(self.leases)  # type: ignore[attr-defined]
        transition = self.pool.report(lease, verdict, self.now)  # type: ignore[arg-type]
        if transition is not None:
            assert transition.after is self.pool.states(self.now)[lease.index].state or (
                transition.seconds == 0.0
            )
        if isinstance(verdict, KeyLimited):
            seconds = verdict.seconds or 0.0
            if verdict.quota:
                seconds = max(seconds, 300.0)
            elif verdict.seconds is None:
                seconds = 20.0
            until = self.now + seconds
            self.cool_until[lease.index] = max(self.cool_until[lease.index], until)
        if ends:
            self.leases.remove(lease)
            self.pool.release(lease)
            self.pool.release(lease)  # a second time does nothing

    @rule()
    def settle(self) -> None:
        self.pool.settle(self.now)

    @invariant()
    def in_flight_is_what_is_leased(self) -> None:
        expected = [sum(held.index == i for held in self.leases) for i in range(3)]
        assert [status.in_flight for status in self.pool.states(self.now)] == expected

    @invariant()
    def nothing_is_to_be_had_when_exhausted(self) -> None:
        if self.pool.exhausted(self.now):
            assert self.pool.acquire(self.now) is None


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolMachine = Pool.TestCase
