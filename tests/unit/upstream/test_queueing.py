"""Lines before an upstream: bounded, fair, and with nothing lost on the way."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.upstream.queueing import FairQueue, QueuePolicy, Ticket


def queue(slots: int = 1, waiting: int = 10) -> FairQueue:
    return FairQueue(QueuePolicy(slots, waiting))


def arrive(line: FairQueue, party: str) -> Ticket:
    ticket = line.arrive(party).ticket
    assert ticket is not None
    return ticket


def test_so_many_get_in_at_once_and_the_rest_wait() -> None:
    line = queue(slots=2)
    assert [arrive(line, "a").admitted for _ in range(3)] == [True, True, False]
    assert (line.in_use, line.waiting) == (2, 1)


def test_of_one_party_the_first_to_come_is_the_first_to_go() -> None:
    line = queue()
    _, *waiting = [arrive(line, "a") for _ in range(4)]
    assert [line.leave() for _ in waiting] == [[ticket] for ticket in waiting]


def test_parties_take_turns_however_much_one_of_them_asks() -> None:
    line = queue()
    for party in "aaaabbc":
        line.arrive(party)
    served = [ticket.party for _ in range(6) for ticket in line.leave()]
    assert served == ["a", "b", "c", "a", "b", "a"]


def test_a_full_line_sends_away_who_has_his_share() -> None:
    line = queue(waiting=2)
    for party in "aab":
        arrive(line, party)
    refused = line.arrive("a")
    assert (refused.ticket, refused.displaced, line.waiting) == (None, None, 2)


def test_a_full_line_makes_room_for_who_has_less_than_his_share() -> None:
    line = queue(waiting=3)
    *_, last = [arrive(line, "a") for _ in range(4)]
    arrival = line.arrive("b")
    assert arrival.displaced is last
    assert arrival.ticket is not None
    assert line.waiting == 3


def test_with_no_place_to_wait_at_all_the_slots_are_all_there_is() -> None:
    line = queue(waiting=0)
    assert arrive(line, "a").admitted
    assert line.arrive("b").ticket is None


def test_a_higher_limit_lets_waiting_ones_in_and_a_lower_one_sends_nobody_away() -> None:
    line = queue()
    first, second, third = (arrive(line, "a") for _ in range(3))
    assert line.change(QueuePolicy(2)) == [second]
    assert line.change(QueuePolicy(1)) == []
    assert line.leave() == []
    assert line.leave() == [third]
    assert first.admitted


class Lines(RuleBasedStateMachine):
    """Against a model that keeps every ticket, and looks through all of them."""

    slots, places = 3, 5

    def __init__(self) -> None:
        super().__init__()
        self.line = queue(self.slots, self.places)
        self.waiting: list[Ticket] = []
        self.inside = 0

    @rule(party=st.sampled_from("abc"))
    def arrives(self, party: str) -> None:
        waiting = Counter(ticket.party for ticket in self.waiting)
        arrival = self.line.arrive(party)
        if arrival.displaced is not None:
            assert waiting[arrival.displaced.party] == max(waiting.values()) > waiting[party] + 1
            same = [each for each in self.waiting if each.party == arrival.displaced.party]
            assert arrival.displaced is same[-1]
            self.waiting.remove(arrival.displaced)
        if arrival.ticket is None:
            assert len(self.waiting) == self.places
        elif arrival.ticket.admitted:
            assert not self.waiting
            self.inside += 1
        else:
            self.waiting.append(arrival.ticket)

    @precondition(lambda self: self.inside)
    @rule()
    def leaves(self) -> None:
        admitted = self.line.leave()
        self.inside -= 1
        assert len(admitted) == min(1, len(self.waiting))
        for ticket in admitted:
            assert ticket.admitted
            first = next(each for each in self.waiting if each.party == ticket.party)
            assert ticket is first
            self.waiting.remove(ticket)
            self.inside += 1

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(min_value=0))
    def gives_up(self, at: int) -> None:
        self.line.give_up(self.waiting.pop(at % len(self.waiting)))

    @invariant()
    def nothing_is_lost(self) -> None:
        assert (self.line.in_use, self.line.waiting) == (self.inside, len(self.waiting))
        assert self.inside <= self.slots
        assert len(self.waiting) <= self.places
        assert not self.waiting or self.inside == self.slots


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=40)


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_nobody_is_passed_twice_by_the_same_party_while_waiting(parties: list[str]) -> None:
    line = queue(waiting=100)
    arrive(line, "x")
    waiting = [arrive(line, party) for party in parties]
    order = [ticket for _ in parties for ticket in line.leave()]
    for ticket in waiting:
        before = order[: order.index(ticket)]
        own = sum(each.party == ticket.party for each in before)
        others = Counter(each.party for each in before if each.party != ticket.party)
        assert all(count <= own + 1 for count in others.values())
