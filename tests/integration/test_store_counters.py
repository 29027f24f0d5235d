"""What `/metrics` tells of look-ups that leave the process."""

from tests.integration.contract import chat, entries_stored, metric, post
from tests.integration.servers import ProxyFactory

LOOKUPS = 'magic_proxy_store_lookups_total{store="disk"}'
TRIPS = 'magic_proxy_store_round_trips_total{store="disk"}'


def test_a_hit_from_the_shared_store_is_one_look_up_in_one_round_trip(proxy: ProxyFactory) -> None:
    running = proxy({"store": {"tiers": ["disk"]}})
    post(running)
    assert entries_stored(running) == 1
    before = [metric(running, LOOKUPS), metric(running, TRIPS)]

    assert post(running, chat()).headers["x-cache"] == "HIT"

    assert [metric(running, LOOKUPS), metric(running, TRIPS)] == [each + 1 for each in before]
