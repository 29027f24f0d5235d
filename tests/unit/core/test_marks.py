"""Purge marks against a plain list of all purges: equal where nothing is merged, else stricter."""

import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.marks import EVERYTHING, Marks, Verdict, next_number, uncovered
from proxy.core.selectors import Mark, Selector

DIGESTS = ("0a" * 32, "1b" * 32)
SEVERITY = {Verdict.LIVE: 0, Verdict.STALE: 1, Verdict.GONE: 2}


@dataclass(frozen=True, slots=True)
class Stored:
    """What marks look at."""

    key: str = f"p:v1:chat:-:{DIGESTS[0]}"
    rule: str = "r"
    model: str = "m"
    tenant: str = ""
    tags: tuple[str, ...] = ()
    stored_at: float = 100.0
    generation: int = 0


def fits(mark: Mark, entry: Stored) -> bool:
    """The definition: every member that is set fits, it came later, and the entry is old enough."""
    endpoint, _, digest = entry.key.split(":")[2:5]
    members = {"endpoint": endpoint, "digest": digest, "rule": entry.rule, "model": entry.model}
    members["tenant"] = entry.tenant
    named = all(
        value in entry.tags if name == "tag" else members[name] == value
        for name, value in mark.selector.set_members
    )
    old = mark.stored_before is None or entry.stored_at < mark.stored_before
    return named and old and mark.number > entry.generation


def oracle(marks: list[Mark], entry: Stored) -> Verdict:
    """All marks, one by one."""
    fitting = [mark for mark in marks if fits(mark, entry)]
    if any(not mark.soft for mark in fitting):
        return Verdict.GONE
    return Verdict.STALE if fitting else Verdict.LIVE


def maybe(*values: str) -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from(values)


SELECTORS = st.builds(
    Selector,
    digest=maybe(*DIGESTS),
    endpoint=maybe("chat", "embeddings"),
    rule=maybe("r", "s"),
    model=maybe("m", "n"),
    tenant=maybe("t"),
    tag=maybe("a", "b", "c"),
)
NUMBERS = st.integers(1, 30)
TIMES = st.sampled_from([50.0, 100.0, 150.0])
ENTRIES = st.builds(
    Stored,
    key=st.builds(
        "p:q:v1:{}:-:{}{}".format,
        st.sampled_from(["chat", "embeddings"]),
        st.sampled_from(DIGESTS),
        st.sampled_from(["", ":1", ":12"]),
    ).map(lambda key: key.replace("p:q", "p", 1)),
    rule=st.sampled_from("rs"),
    model=st.sampled_from("mn"),
    tenant=st.sampled_from(["", "t"]),
    tags=st.lists(st.sampled_from("abc"), max_size=3).map(tuple),
    stored_at=TIMES,
    generation=st.integers(0, 31),
)
PLAIN = st.lists(st.builds(Mark, NUMBERS, SELECTORS, soft=st.booleans()), max_size=12)
ANY = st.lists(
    st.builds(Mark, NUMBERS, SELECTORS, soft=st.booleans(), stored_before=st.none() | TIMES),
    max_size=25,
)


def in_force(marks: list[Mark], most: int = 10_000) -> Marks:
    made = Marks(most)
    for mark in marks:
        made.add(mark)
    return made


@given(PLAIN, ENTRIES)
def test_B54_plain_marks_say_what_each_of_them_says(marks: list[Mark], entry: Stored) -> None:
    assert in_force(marks).verdict(entry) is oracle(marks, entry)


@given(ANY, ENTRIES, st.integers(1, 30))
def test_B54_merged_and_folded_marks_never_say_less(
    marks: list[Mark], entry: Stored, most: int
) -> None:
    made = in_force(marks, most)
    assert SEVERITY[made.verdict(entry)] >= SEVERITY[oracle(marks, entry)]
    assert len(made) <= most
    assert made.latest == max((mark.number for mark in marks), default=0)


@given(ANY, ENTRIES)
def test_what_marks_hold_says_the_same_when_it_is_put_in_force_anew(
    marks: list[Mark], entry: Stored
) -> None:
    once = in_force(marks)
    assert in_force(list(once)).verdict(entry) is once.verdict(entry)
    assert not any(once.add(mark) for mark in list(once))


@given(ANY, ANY, ENTRIES)
def test_what_is_covered_is_not_missed(mine: list[Mark], held: list[Mark], entry: Stored) -> None:
    given_back = [*held, *uncovered(mine, held)]
    assert SEVERITY[oracle(given_back, entry)] >= SEVERITY[oracle(mine, entry)]


@given(ANY, ENTRIES)
def test_an_entry_that_knows_the_latest_mark_is_live(marks: list[Mark], entry: Stored) -> None:
    made = in_force(marks)
    if entry.generation >= made.latest:
        assert made.verdict(entry) is Verdict.LIVE


def test_B54_an_entry_of_a_mark_s_own_generation_is_not_purged_by_it() -> None:
    marks = in_force([Mark(5, Selector(model="m")), Mark(9, Selector(model="n"))])
    assert marks.verdict(Stored(generation=4)) is Verdict.GONE
    assert marks.verdict(Stored(generation=5)) is Verdict.LIVE


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("digest", DIGESTS[0]),
        ("endpoint", "chat"),
        ("rule", "r"),
        ("model", "m"),
        ("tenant", "t"),
        ("tag", "b"),
    ],
)
def test_B54_each_member_selects(member: str, value: str) -> None:
    entry = Stored(tenant="t", tags=("a", "b"))
    other = {
        "digest": Stored(key=f"p:v1:chat:-:{DIGESTS[1]}", tenant="t", tags=("a", "b")),
        "endpoint": Stored(key=f"p:v1:embeddings:-:{DIGESTS[0]}"),
        "rule": Stored(rule="r2"),
        "model": Stored(model="m2"),
        "tenant": Stored(tenant=""),
        "tag": Stored(tags=("a",)),
    }[member]
    marks = in_force([Mark(1, Selector(**{member: value}))])
    assert marks.verdict(entry) is Verdict.GONE
    assert marks.verdict(other) is Verdict.LIVE


def test_B54_all_members_that_are_set_have_to_fit() -> None:
    marks = in_force([Mark(1, Selector(model="m", tenant="t", tag="a"))])
    assert marks.verdict(Stored(tenant="t", tags=("b", "a"))) is Verdict.GONE
    assert marks.verdict(Stored(tenant="t", tags=("b",))) is Verdict.LIVE
    assert marks.verdict(Stored(tags=("a",))) is Verdict.LIVE


def test_B54_a_purge_of_a_key_is_one_of_all_its_variants() -> None:
    marks = in_force([Mark(1, Selector(digest=DIGESTS[0]))])
    for end in ("", ":1", ":15"):
        assert marks.verdict(Stored(key=f"v1:chat:-:{DIGESTS[0]}{end}")) is Verdict.GONE


def test_B54_a_soft_purge_leaves_stale_what_a_hard_one_takes() -> None:
    marks = in_force([Mark(1, Selector(rule="r"), soft=True)])
    assert marks.verdict(Stored()) is Verdict.STALE
    marks.add(Mark(2, Selector(model="m")))
    assert marks.verdict(Stored()) is Verdict.GONE
    assert marks.verdict(Stored(generation=1)) is Verdict.GONE
    assert marks.verdict(Stored(generation=2)) is Verdict.LIVE


def test_B54_a_purge_by_age_spares_what_is_younger() -> None:
    marks = in_force([Mark(1, Selector(), stored_before=100.0)])
    assert marks.verdict(Stored(stored_at=99.9)) is Verdict.GONE
    assert marks.verdict(Stored(stored_at=100.0)) is Verdict.LIVE


def test_B54_tags_are_compared_in_their_normalized_form() -> None:
    strange = "x" * 10_000
    marks = in_force([Mark(1, Selector(tag=strange)), Mark(2, Selector(tag=" a "))])
    digest = next(mark for mark in marks if mark.number == 1).selector.tag
    assert digest is not None
    assert digest.startswith("sha256-")
    assert marks.verdict(Stored(tags=(digest,))) is Verdict.GONE
    assert marks.verdict(Stored(tags=("a",))) is Verdict.GONE


def test_a_selector_that_fits_nothing_changes_no_verdict() -> None:
    assert in_force([Mark(9, Selector(tag="none"))]).verdict(Stored()) is Verdict.LIVE


def test_a_key_that_is_none_is_purged_by_what_does_not_ask_for_the_key() -> None:
    marks = in_force([Mark(1, Selector(digest=DIGESTS[0]))])
    assert marks.verdict(Stored(key="odd")) is Verdict.LIVE
    marks.add(Mark(2, EVERYTHING))
    assert marks.verdict(Stored(key="odd")) is Verdict.GONE


def test_add_tells_whether_anything_changed() -> None:
    marks = Marks()
    assert marks.add(Mark(5, Selector(tag="a")))
    assert not marks.add(Mark(5, Selector(tag="a")))
    assert not marks.add(Mark(4, Selector(tag="a")))
    assert marks.add(Mark(6, Selector(tag="a")))
    assert marks.add(Mark(7, EVERYTHING))
    assert not marks.add(Mark(6, Selector(tag="b")))
    assert list(marks) == [Mark(7, EVERYTHING)]


def test_B56_marks_beyond_the_bound_fold_and_memory_stays_flat() -> None:
    marks = Marks(most=200)

    def purge(numbers: range) -> int:
        for number in numbers:
            marks.add(Mark(number, Selector(tag=f"t{number}")))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    early = purge(range(1, 400))
    late = purge(range(400, 4_000))
    tracemalloc.stop()
    assert len(marks) <= 200
    assert late < early * 1.5
    assert marks.verdict(Stored(tags=("t3999",), generation=3_998)) is Verdict.GONE
    assert marks.verdict(Stored(tags=("x",), generation=0)) is Verdict.GONE, "folded: too much"
    assert marks.verdict(Stored(tags=("x",), generation=3_900)) is Verdict.LIVE


def test_numbers_grow_whatever_the_clock_says() -> None:
    assert next_number(0, 0, 1_800_000_000.0) == 1_800_000_000_000
    hour_ago = 1_800_000_000.0 - 3600
    assert next_number(1_800_000_000_000, 0, hour_ago) == 1_800_000_000_001
    assert next_number(0, 1_800_000_000_007, hour_ago) == 1_800_000_000_008
