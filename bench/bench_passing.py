"""What the proxy adds to a request that it only passes on, beside nginx `proxy_pass`.

    python -m bench.bench_passing [--turns 3] [--seconds 3] [--patience 200]
        [--only KIND ...] [--write]

32 connections, each busy all the time, ask an upstream directly, through nginx, and through the
proxy, in turns (A B C A B C ...) within one run. The upstream takes about 100 ms, then about 300 ms
(a fifth more or less, so that requests don't come in step), and says itself how long it took: what
is told is the time beyond that, and *added* is what it is through a proxy less what it is directly,
of the same turn and at the same share of the answers. Where the upstream answers at once, 32 busy
connections are more than one core can serve, and latency is only how long the line is: there the
rate and the CPU time of a request are told instead.

The proxies have one core; the client and the upstream have the other one. CPU is the proxy's own,
by `/proc/PID/stat`. A turn in which others had more than a tenth of a core was disturbed, and is
taken again, as long as the patience (seconds, in all) lasts.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from bench.coalesce_base import run_turn, verdict
from bench.goals import middle_of, row
from bench.machine import LOAD_CORE, described, family, pin
from bench.nginx import nginx_pass
from bench.passing_turns import KINDS, Kind, Turn, turn
from bench.processes import Running, paced, program_version, proxy
from bench.quiet import Patience, quietly
from bench.report import middle, publish, publish_goals, table

NAME = "bench_passing"
GOAL_MS = 1.0
WAITS = (0.1, 0.3)
DIRECT, NGINX, OURS = "direct", "nginx", "proxy"
_SHARES = (0.5, 0.9, 0.99)

Turns = Mapping[str, Sequence[Turn]]
"""Those of the sides, by the name of the side."""


@contextmanager
def sides(wait: float) -> Iterator[dict[str, Running]]:
    """An upstream that takes so long, alone and behind either proxy."""
    settings = {"store": {"tiers": ["memory"]}}
    with (
        paced("--wait-seconds", str(wait), "--spread", "0.2") as behind,
        nginx_pass(behind) as nginx,
        proxy(behind, settings) as server,
    ):
        worker = Running(family(nginx.pid)[-1], nginx.port)
        yield {DIRECT: behind, NGINX: worker, OURS: server}


def measured(
    wait: float, kinds: Mapping[str, Kind], turns: int, seconds: float, patience: Patience
) -> Mapping[str, Turns]:
    """All kinds, each side in turn."""
    came: dict[str, dict[str, list[Turn]]] = {
        name: {DIRECT: [], NGINX: [], OURS: []} for name in kinds
    }
    with sides(wait) as servers:
        for _ in range(turns):
            for name, kind in kinds.items():
                for side, server in servers.items():

                    def once(server: Running = server, kind: Kind = kind) -> Turn:
                        return run_turn(turn(server, kind, seconds))

                    came[name][side].append(quietly(once, list(servers.values()), patience))
    return came


def added(turns: Turns, side: str, share: float) -> list[float]:
    """Milliseconds that this side adds, of each turn."""
    pairs = zip(turns[side], turns[DIRECT], strict=True)
    return [through.ms(share) - direct.ms(share) for through, direct in pairs]


def waiting(came: Mapping[float, Mapping[str, Turns]]) -> str:
    """What is added where the upstream takes its time."""
    head = ["what passes", "upstream takes", "directly, p50 ms", "nginx adds p50", "p99"]
    head += ["the proxy adds p50", "p90", "p99", "CPU µs"]
    rows = []
    for wait, kinds in came.items():
        for name, turns in kinds.items():
            cells = [KINDS[name].title, f"{1000 * wait:.0f} ms"]
            cells.append(middle([each.ms(0.5) for each in turns[DIRECT]], 2))
            cells += [middle(added(turns, NGINX, share), 2) for share in (0.5, 0.99)]
            cells += [middle(added(turns, OURS, share), 2) for share in _SHARES]
            cells.append(middle([each.cpu_us for each in turns[OURS]]))
            rows.append(cells)
    return table(head, rows, left=2)


def saturated(kinds: Mapping[str, Turns]) -> str:
    """What one core can do where the upstream answers at once."""
    head = ["what passes", "direct, requests/s", "nginx", "CPU µs", "the proxy", "CPU µs"]
    rows = []
    for name, turns in kinds.items():
        cells = [KINDS[name].title, middle([each.rate for each in turns[DIRECT]])]
        for side in (NGINX, OURS):
            cells.append(middle([each.rate for each in turns[side]]))
            cells.append(middle([each.cpu_us for each in turns[side]]))
        rows.append(cells)
    return table(head, rows)


def goals(came: Mapping[str, Turns]) -> list[list[str]]:
    """A row for each kind, where the upstream takes 100 ms."""
    rows = []
    for name, turns in came.items():
        figures = added(turns, OURS, 0.5)
        reached = statistics.median(figures) <= GOAL_MS
        path, wanted = f"passing through: {KINDS[name].title}", f"adds ≤ {GOAL_MS:g} ms, p50"
        rows.append(row(path, wanted, f"{middle_of(figures)} ms", NAME, reached=reached))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn of each side")
    parser.add_argument("--patience", type=float, default=200.0, help="seconds, in all")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    patience = Patience(time.monotonic() + given.patience)
    kinds = {name: KINDS[name] for name in given.only}
    came = {
        wait: measured(wait, kinds, given.turns, given.seconds, patience) for wait in (*WAITS, 0.0)
    }
    at_once = came.pop(0.0)
    command = f"python -m bench.{NAME} --turns {given.turns} --seconds {given.seconds:g}"
    about = f"`{command}`: {described('aiohttp', 'uvicorn', 'uvloop')}"
    about += f" {program_version('nginx', '-v')}. Median (range). {patience}"
    rows = goals(came[WAITS[0]])
    goal = f"Goal: {GOAL_MS:g} ms at the median, or less, where the upstream takes 100 ms."
    goal += f" {verdict(reached=not any('missed' in each[3] for each in rows))}"
    report = [about, waiting(came), goal, "An upstream that answers at once:", saturated(at_once)]
    publish("passing", "\n\n".join(report), write=given.write)
    publish_goals(rows, write=given.write)


if __name__ == "__main__":
    main()
