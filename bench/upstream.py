"""The upstream of the benchmarks: the stand-in, at once, with a chat answer of 1.6 KB.

python -m bench.upstream --port 9000
"""

import argparse
import contextlib
import threading

from proxy.standin import Script, StandIn, start_standin

# Makes the whole answer 1.6 KB.
CONTENT = "The quick brown fox jumps over the lazy dog; then it rests. " * 21


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    app = StandIn(keep=0)
    app.script(Script(content=CONTENT), times=None)
    with start_standin(app, port=parser.parse_args().port), contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    main()
