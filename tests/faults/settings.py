"""The upstreams of the cells, and the settings of the proxies before them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from tests.faults.fault import KEY_COOLDOWN, KEY_RETIRE, QUOTA_COOLDOWN, At, Fine
from tests.faults.kinds import good
from tests.faults.lab import Lab
from tests.faults.table import Cell, Setup
from tests.faults.tcp_proxy import TcpProxy
from tests.faults.wires import Wire, plain, until_close

TTL_SECONDS = 600.0
MAX_ENTRY_BYTES = 65_536
# Longer than a run takes, and shorter than the time by which the clock goes ahead.
_WINDOW_SECONDS = 300.0


class Ground:
    """Where the upstreams are: the lab, and lines to it that get worse."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        self.lab = lab
        self._stack = stack
        self._lines: dict[Cell, TcpProxy] = {}

    def place(self, cell: Cell, url: str) -> str:
        """Where the upstream of a cell is reached that stands in the lab at `url`."""
        if cell.fault.at is At.LAB:
            return url
        self._lines[cell] = self._stack.enter_context(TcpProxy(url))
        return self._lines[cell].url

    def worsen(self, cell: Cell) -> None:
        """From now on the line is as bad as the fault says, where it is one of the line."""
        match cell.fault.at:
            case At.LINE:
                self._lines[cell].up, self._lines[cell].down = cell.fault.up, cell.fault.down
            case At.NOBODY:
                self._lines[cell].refuse()
            case At.FULL:
                self._lines[cell].stall()
            case At.LAB:
                pass


@contextmanager
def ground() -> Iterator[Ground]:
    """Keeps all of it for as long as the block lasts."""
    with ExitStack() as stack:
        yield Ground(stack.enter_context(Lab()), stack)


def keys_of(cell: Cell) -> list[str]:
    """The keys of the upstream `a`."""
    count = {Setup.OWN: 0, Setup.TWO: 2}.get(cell.setup, 1)
    return [f"{cell}-a{number}" for number in range(1, count + 1)]


def settings(cells: Sequence[Cell], ground: Ground) -> dict[str, Any]:
    """One proxy for these cells, which have the same setup; each is a model of its own."""
    setup = cells[0].setup
    upstreams: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for cell in cells:
        upstreams[f"{cell}-a"] = _faulty(cell, ground)
        models[str(cell)] = {"upstream": f"{cell}-a"}
        if setup is Setup.CHAIN:
            url = ground.lab.url(f"{cell}-b", partial(_plain, cell, "b"))
            upstreams[f"{cell}-b"] = {"base_url": url, "api_keys": [f"{cell}-b1"]}
            models[f"{cell}-b"] = {"upstream": f"{cell}-b"}
            models[str(cell)]["fallbacks"] = [f"{cell}-b"]
    rule = {
        "name": "r",
        "model_names": ["*"],
        "include_in_key": ["*"],
        "ttl_seconds": TTL_SECONDS,
        "stale_if_error_seconds": 86_400 if setup is Setup.STALE else 0,
        "max_entry_bytes": MAX_ENTRY_BYTES,
    }
    return {
        "server": {"access_log": False},
        "store": {"tiers": ["memory"]},
        "upstreams": upstreams,
        "default_upstream": f"{cells[0]}-a",
        "models": models,
        "cache_settings": {"rules": [rule]},
        **({} if setup is Setup.OWN else {"clients": "open"}),
    }


def _faulty(cell: Cell, ground: Ground) -> dict[str, Any]:
    faulty_call = 2 if cell.setup is Setup.STALE else 1
    fault = cell.fault

    def script(call: int) -> Wire:
        if call < faulty_call:  # on a connection that is not used again: the next one is fresh
            return replace(until_close(good(cell.kind, f"a{call}")), is_good=True)
        if call == faulty_call:
            wire = fault.wire(good(cell.kind, f"a{call}"))
            return replace(wire, is_good=isinstance(fault.says, Fine) or fault.at is At.LINE)
        return _plain(cell, "a", call)

    lab = ground.lab.url(f"{cell}-a", script)
    return {
        "base_url": ground.place(cell, lab),
        "api_keys": keys_of(cell),
        "timeouts": dict(fault.timeouts),
        "circuit": {"min_calls": 1000, "window_seconds": _WINDOW_SECONDS},
        "key_cooldown_seconds": KEY_COOLDOWN,
        "quota_cooldown_seconds": QUOTA_COOLDOWN,
        "key_retire_seconds": KEY_RETIRE,
        "transport": cell.transport,
    }


def _plain(cell: Cell, upstream: str, call: int) -> Wire:
    return replace(plain(good(cell.kind, f"{upstream}{call}")), is_good=True)
