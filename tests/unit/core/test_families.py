"""What several workers counted, as one answer to a scrape."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.families import Family, lasting, merged


def family(name: str, kind: str, **samples: float) -> Family:
    return Family(
        name, kind, "Says what.", {(name, (("of", key),)): value for key, value in samples.items()}
    )


def values(family: Family) -> dict[str, float]:
    return {labels[0][1]: value for (_, labels), value in family.samples.items()}


def store(name: str, tier: str, value: float) -> Family:
    return Family(name, "gauge", "", {(name, (("store", tier),)): value})


def test_counters_and_histograms_are_added_sample_by_sample() -> None:
    one = [family("requests", "counter", hit=3, miss=1), family("seconds", "histogram", a=2)]
    other = [family("seconds", "histogram", a=5, b=1), family("requests", "counter", hit=4)]

    requests, seconds = merged([one, other])

    assert values(requests) == {"hit": 7, "miss": 1}
    assert values(seconds) == {"a": 7, "b": 1}
    assert (requests.kind, seconds.kind) == ("counter", "histogram")


def test_a_gauge_of_what_each_worker_has_for_itself_is_a_sum() -> None:
    (queued,) = merged([[family("queued", "gauge", a=2)], [family("queued", "gauge", a=3)]])

    assert values(queued) == {"a": 5}


def test_what_all_workers_share_is_held_once_and_their_own_memories_add_up() -> None:
    name = "magic_proxy_store_bytes"
    workers = [
        [store(name, "memory", 10), store(name, "disk", 500)],
        [store(name, "memory", 30), store(name, "disk", 480)],
    ]

    told = merged([merged([[one], [other]]) for one, other in zip(*workers, strict=True)])

    assert values(told[0]) == {"memory": 40, "disk": 500}


def test_a_store_is_up_where_it_is_up_for_every_worker() -> None:
    name = "magic_proxy_store_up"
    (up,) = merged([[store(name, "redis", 1)], [store(name, "redis", 0)]])

    assert values(up) == {"redis": 0}


def test_of_a_keys_headroom_the_least_that_any_worker_knows_counts() -> None:
    name = "magic_proxy_upstream_key_headroom"
    (headroom,) = merged([[family(name, "gauge", key=0.4)], [family(name, "gauge", key=0.3)]])

    assert values(headroom) == {"key": 0.3}


def test_a_key_is_in_each_state_that_any_worker_has_it_in() -> None:
    name = "magic_proxy_upstream_key_state"
    one, other = (
        family(name, "gauge", available=1, cooling=0),
        family(name, "gauge", available=0, cooling=1),
    )

    assert values(merged([[one], [other]])[0]) == {"available": 1, "cooling": 1}


def test_of_a_worker_that_ended_the_counts_stay_and_the_states_go() -> None:
    ended = [family("requests", "counter", a=1), family("queued", "gauge", a=1)]

    assert [each.name for each in lasting(ended)] == ["requests"]


_COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 1000), max_size=3)


@given(st.lists(_COUNTS, max_size=5), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_who_comes_first_or_on_how_they_are_grouped(
    counts: list[dict[str, int]], random: object
) -> None:
    reports = [[family("n", "counter", **each)] for each in counts]
    shuffled = list(reports)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis hides the type
    grouped = [merged(shuffled[:2]), *shuffled[2:]]

    total = {key: sum(c.get(key, 0) for c in counts) for key in {k for c in counts for k in c}}
    for told in (merged(reports), merged(grouped)):
        assert [values(each) for each in told] == ([total] if reports else [])


@given(st.lists(_COUNTS, max_size=3))
def test_families_come_back_from_json_as_they_were(counts: list[dict[str, int]]) -> None:
    for each in counts:
        told = family("n", "counter", **each)
        assert Family.of_json(told.as_json()) == told
