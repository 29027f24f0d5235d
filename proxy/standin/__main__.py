"""`python -m proxy.standin`: the stand-in as a process of its own, for benchmarks and tries."""

import argparse
import contextlib
import threading

from proxy.standin.app import Pace, StandIn
from proxy.standin.server import start_standin


def main() -> None:
    """Serve until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m proxy.standin", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--first-seconds", type=float, default=0.0, help="until the first token")
    parser.add_argument("--token-seconds", type=float, default=0.0, help="for each further token")
    given = parser.parse_args()
    pace = Pace(first_seconds=given.first_seconds, token_seconds=given.token_seconds)
    with start_standin(StandIn(pace=pace, keep=0), port=given.port) as running:
        # Programs that start it read the address from the first line.
        print(running.base_url, flush=True)  # noqa: T201 - a command line prints
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
