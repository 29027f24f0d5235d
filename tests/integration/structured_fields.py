"""A strict parser for structured-field lists (RFC 8941), written apart from what it tests."""

import re
from dataclasses import dataclass
from typing import TypeAlias

_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*")
_KEY = re.compile(r"[a-z*][a-z0-9_.*-]*")
_NUMBER = re.compile(r"-?[0-9]{1,15}(?![0-9.])")


class Token(str):
    """A bare word, as opposed to a quoted string."""

    __slots__ = ()


Bare: TypeAlias = bool | int | Token | str


@dataclass(frozen=True, slots=True)
class Item:
    """One member of a list, and its parameters in order."""

    value: Bare
    parameters: dict[str, Bare]


def parse_list(text: str) -> list[Item]:
    """Section 4.2.1 for members that are items. Raises ValueError on anything else."""
    items: list[Item] = []
    reader = _Reader(text.strip(" "))
    while not reader.ended():
        items.append(reader.item())
        reader.skip(" \t")
        if reader.ended():
            return items
        reader.expect(",")
        reader.skip(" \t")
        if reader.ended():
            raise ValueError("a comma at the end")
    return items


class _Reader:
    def __init__(self, text: str) -> None:
        if not text.isascii():
            raise ValueError("not ASCII")
        self._text = text
        self._at = 0

    def ended(self) -> bool:
        return self._at >= len(self._text)

    def skip(self, characters: str) -> None:
        while not self.ended() and self._text[self._at] in characters:
            self._at += 1

    def expect(self, character: str) -> None:
        if not self._text.startswith(character, self._at):
            raise ValueError(f"expected {character!r} at {self._at} of {self._text!r}")
        self._at += 1

    def item(self) -> Item:
        value = self._bare()
        parameters: dict[str, Bare] = {}
        while self._text.startswith(";", self._at):
            self._at += 1
            self.skip(" ")
            name = self._match(_KEY)
            if name in parameters:
                raise ValueError(f"{name} stands twice")
            parameters[name] = True
            if self._text.startswith("=", self._at):
                self._at += 1
                parameters[name] = self._bare()
        return Item(value, parameters)

    def _bare(self) -> Bare:
        if self.ended():
            raise ValueError("nothing where a value must be")
        if self._text[self._at] == '"':
            return self._string()
        if self._text[self._at] in "-0123456789":
            return int(self._match(_NUMBER))
        return Token(self._match(_TOKEN))

    def _string(self) -> str:
        self._at += 1
        characters: list[str] = []
        while not self.ended():
            character = self._text[self._at]
            self._at += 1
            if character == '"':
                return "".join(characters)
            if character == "\\":
                character = self._text[self._at : self._at + 1]
                if character not in {'"', "\\"}:
                    raise ValueError("a bad escape")
                self._at += 1
            elif not " " <= character <= "~":
                raise ValueError("not visible ASCII")
            characters.append(character)
        raise ValueError("a string without an end")

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError(f"nothing fits at {self._at} of {self._text!r}")
        self._at = found.end()
        return found.group()
