"""Who may ask an upstream now, and who comes next: so many at once, in turns among parties. Pure.

A party is whoever is to have a fair share: a tenant, or a client. Each has a line of its own; the
head of the first line goes next, and then its party is the last one in turn.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """So many requests at once; so many more may wait, each for so long."""

    max_concurrent: int
    max_waiting: int = 100
    max_wait_seconds: float = 30.0


class Ticket:
    """One request's place: `admitted` once it is its turn. Compared by identity."""

    __slots__ = ("admitted", "party")

    def __init__(self, party: str) -> None:
        self.party = party
        self.admitted = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of an arrival: its ticket, None where it may not even wait.

    `displaced` had to leave the line for it: the last one of the party with the longest line.
    """

    ticket: Ticket | None
    displaced: Ticket | None = None


class FairQueue:
    """Slots, and the lines before them.

    When all places in the lines are taken, a party that has fewer than its share gets one of those
    of the party that has most: nobody can keep others out by asking a lot.
    """

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.in_use = 0
        self.waiting = 0
        # In the order of turns, and each line in the order of arrival.
        self._lines: dict[str, dict[Ticket, None]] = {}

    def arrive(self, party: str) -> Arrival:
        """Take a slot where one is free, else a place in line."""
        ticket = Ticket(party)
        if self.in_use < self.policy.max_concurrent:
            self.in_use += 1
            ticket.admitted = True
            return Arrival(ticket)
        displaced = None
        if self.waiting >= self.policy.max_waiting:
            displaced = self._displaced_by(party)
            if displaced is None:
                return Arrival(None)
            self.give_up(displaced)
        self._lines.setdefault(party, {})[ticket] = None
        self.waiting += 1
        return Arrival(ticket, displaced)

    def leave(self) -> list[Ticket]:
        """Give a slot back; those whose turn it is now have one."""
        self.in_use -= 1
        return self._admit()

    def give_up(self, ticket: Ticket) -> None:
        """Leave the line."""
        line = self._lines[ticket.party]
        del line[ticket]
        self.waiting -= 1
        if not line:
            del self._lines[ticket.party]

    def change(self, policy: QueuePolicy) -> list[Ticket]:
        """Go on under another policy; those who have a slot now. Nobody is sent away for it."""
        self.policy = policy
        return self._admit()

    def _admit(self) -> list[Ticket]:
        admitted: list[Ticket] = []
        while self._lines and self.in_use < self.policy.max_concurrent:
            party = next(iter(self._lines))
            line = self._lines.pop(party)
            ticket = next(iter(line))
            del line[ticket]
            if line:
                self._lines[party] = line
            self.waiting -= 1
            self.in_use += 1
            ticket.admitted = True
            admitted.append(ticket)
        return admitted

    def _displaced_by(self, party: str) -> Ticket | None:
        """Whose place `party` may have: only where it is not the worse off for it."""
        longest = max(self._lines.values(), key=len, default=None)
        if longest is None or len(longest) <= len(self._lines.get(party, ())) + 1:
            return None
        return next(reversed(longest))
