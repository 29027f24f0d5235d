"""The soak in short: two proxies, one Redis, the whole mix with an upstream that misbehaves.

Redis stays up, and the machine may be busy with other tests: `python -m bench.soak` is the long
form, to be run with nothing beside it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(60)
def test_B40_B54_a_short_soak_finds_no_wrong_answer_and_no_unexplained_call() -> None:
    command = [sys.executable, "-m", "bench.soak", "--short", "--seconds", "6", "--rate", "30"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
