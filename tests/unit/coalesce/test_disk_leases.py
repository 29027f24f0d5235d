"""The table of leases by itself."""

import sqlite3

from proxy.coalesce.base import FlightEnd
from proxy.coalesce.disk_leases import DiskLeases
from tests.fakes import FakeClock


def test_B50_an_end_that_another_version_told_sends_followers_on() -> None:
    leases = DiskLeases(FakeClock(), lease_seconds=5.0)
    file = sqlite3.connect(":memory:")
    leases.prepare(file)
    token = leases.acquire(file, ["k"])[0]
    leases.acquire(file, ["k"])  # somebody follows
    file.execute("UPDATE leases SET ended = 'novel' WHERE key = 'k'")
    assert leases.look(file, [("k", token)]) == [FlightEnd.FAILED]
    file.close()
