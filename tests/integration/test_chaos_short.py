"""The hour of chaos in short: everything breaks in quick succession, and is well again in the end.

The machine may be busy with other tests: `python -m bench.chaos` is the long form, to be run with
nothing beside it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(60)
def test_B56_B63_short_chaos_ends_with_nothing_unexplained_and_nothing_stuck() -> None:
    command = [sys.executable, "-m", "bench.chaos", "--short", "--seconds", "2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
