"""Reads domain configuration files (xl.cfg(5)): `KEY = VALUE` a line, where a value is a string, a number, or a list.

Source: xl.cfg(5); the grammar is that of libxlu_cfg_y.y (`+=` appends to a string or list).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from ring3.errors import ConfigError

Value: TypeAlias = "str | int | list[Value]"
_DEPTH_MAX: Final = 20
"""Lists in lists."""
_TOKEN: Final = re.compile(
    r"""(?P<blank>[ \t\r\f]+|\#[^\n]*|\\\n) | (?P<end>[\n;]) | (?P<string>'[^'\n]*'|"[^"\n]*")
    | (?P<number>0[xX][0-9a-fA-F]+|-?[0-9]+)\b | (?P<word>[A-Za-z_][A-Za-z0-9_]*) | (?P<sign>\+=|[=\[\],])""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a key is set to, and where."""

    value: Value
    line: int


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


def read(path: Path) -> dict[str, Setting]:
    """Returns the settings of a file. Raises ConfigError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(getattr(error, "strerror", None) or "it is no text", file=path) from error
    return parse(text, path)


def parse(text: str, path: Path) -> dict[str, Setting]:
    """Returns the settings of a file's text. Raises ConfigError."""
    parser = _Parser(list(_tokens(text, path)), path)
    settings: dict[str, Setting] = {}
    while (key := parser.next(skips_ends=True)).kind != "eof":
        if key.kind != "word":
            raise parser.unexpected(key)
        sign = parser.next()
        if sign.text not in ("=", "+="):
            raise parser.unexpected(sign)
        value = parser.value()
        if sign.text == "+=" and key.text in settings:
            before = settings[key.text].value
            if isinstance(before, list) and isinstance(value, list):
                value = [*before, *value]
            elif isinstance(before, str) and isinstance(value, str):
                value = before + value
            else:
                raise ConfigError("+= of another kind of value", file=path, line=key.line, key=key.text)
        settings[key.text] = Setting(value, key.line)
        end = parser.next()
        if end.kind not in ("end", "eof"):
            raise parser.unexpected(end)
    return settings


class _Parser:
    def __init__(self, tokens: list[_Token], path: Path) -> None:
        self._tokens = tokens
        self._place = 0
        self._path = path

    def next(self, *, skips_ends: bool = False) -> _Token:
        while skips_ends and self._tokens[self._place].kind == "end":
            self._place += 1
        token = self._tokens[self._place]
        if token.kind != "eof":
            self._place += 1
        return token

    def value(self) -> Value:
        return self._value(0)

    def _value(self, depth: int) -> Value:
        token = self.next()
        match token.kind, token.text:
            case "string", text:
                return text[1:-1]
            case "number", text:
                return int(text, 0) if text[:2] in ("0x", "0X") else int(text)
            case _, "[" if depth < _DEPTH_MAX:
                return self._list(depth + 1)
        raise self.unexpected(token)

    def _list(self, depth: int) -> list[Value]:
        values: list[Value] = []
        while True:
            token = self.next(skips_ends=True)
            if token.text == "]":
                return values
            if token.kind == "eof":
                raise self.unexpected(token)
            self._place -= 1
            values.append(self._value(depth))
            token = self.next(skips_ends=True)
            if token.text == "]":
                return values
            if token.text != ",":
                raise self.unexpected(token)

    def unexpected(self, token: _Token) -> ConfigError:
        what = {"eof": "the end of the file", "end": "the end of the line"}.get(token.kind, repr(token.text))
        return ConfigError(f"{what} is not expected here", file=self._path, line=token.line)


def _tokens(text: str, path: Path) -> Iterator[_Token]:
    place, line = 0, 1
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise ConfigError(f"{text[place]!r} is not expected here", file=path, line=line)
        kind = str(found.lastgroup)
        if kind != "blank":
            yield _Token(kind, found[0], line)
        line += found[0].count("\n")
        place = found.end()
    yield _Token("eof", "", line)
