"""Values are compared, hashed and copied as frozen dataclasses are."""

from dataclasses import dataclass, fields, replace

from proxy.core.values import value


@value(frozen=True, slots=True)
class Cheap:
    name: str
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    numbers: tuple[int, ...] = ()


def test_a_value_is_equal_to_one_with_the_same_members_and_hashes_so() -> None:
    assert Cheap("a", (1,)) == Cheap("a", (1,))
    assert Cheap("a") != Cheap("b")
    assert len({Cheap("a"), Cheap("a"), Cheap("b")}) == 2
    assert hash(Cheap("a", (1,))) == hash(Frozen("a", (1,)))


def test_a_value_has_the_members_of_a_dataclass_and_no_others() -> None:
    assert [field.name for field in fields(Cheap)] == ["name", "numbers"]
    assert replace(Cheap("a"), numbers=(2,)) == Cheap("a", (2,))
    assert not hasattr(Cheap("a"), "__dict__")
    assert repr(Cheap("a")) == "Cheap(name='a', numbers=())"
