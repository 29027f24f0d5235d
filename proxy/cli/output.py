"""What the commands print, and where."""

from typing import Any

import orjson
from rich.console import Console

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output, for scripts."""
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def fail(message: str) -> None:
    """One line about what is wrong, on standard error."""
    err.print(f"[red]error:[/red] {_escaped(message)}", soft_wrap=True)


def warn(message: str) -> None:
    """One line about what looks wrong, on standard error."""
    err.print(f"[yellow]warning:[/yellow] {_escaped(message)}", soft_wrap=True)


def note(message: str) -> None:
    """One line about what is fine if it is meant, on standard error."""
    err.print(f"[cyan]note:[/cyan] {_escaped(message)}", soft_wrap=True)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
