"""Guess what a mistyped name was meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean …?` where a known name is close, else nothing."""
    close = get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f", did you mean `{close[0]}`?" if close else ""
