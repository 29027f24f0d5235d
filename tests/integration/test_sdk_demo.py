"""The demo runs offline, shows misses turning into hits, and fails if they do not."""

import io
import sys

import pytest
from rich.console import Console

from proxy.cli.demo import STEPS, run_demo
from proxy.standin import Pace


def _console() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, width=100, force_terminal=False), written


def test_B12_the_demo_shows_each_call_and_what_was_saved() -> None:
    console, written = _console()

    code = run_demo(console=console, pace=Pace())

    text = written.getvalue()
    assert code == 0, text
    assert all(step.title in text for step in STEPS)
    assert text.count("MISS") == 4
    assert text.count("HIT") == 7
    assert "11 calls, 4 of them sent upstream; 256 of 394 tokens saved (65%)." in text


def test_the_demo_says_what_to_install_where_the_sdk_is_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    console, written = _console()

    assert run_demo(console=console, pace=Pace()) == 1
    assert "pip install openai" in written.getvalue()


def test_the_demo_fails_where_a_call_is_not_as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.cli.demo.STEPS", (STEPS[1],))
    console, written = _console()

    assert run_demo(console=console, pace=Pace()) == 1
    assert "Expected HIT" in written.getvalue()
