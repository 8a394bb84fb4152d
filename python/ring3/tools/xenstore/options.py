"""The command line of the xenstore tools, read as getopt_long does: options anywhere, unknown ones ignored aloud."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Final

USAGE: Final = {
    "ls": "[-h] [-f] [-p] [-s] [path]",
    "read": "[-h] [-p] [-s] [-R] key [...]",
    "write": "[-h] [-s] [-R] key value [...]",
    "list": "[-h] [-p] [-s] key [...]",
    "rm": "[-h] [-s] [-t] key [...]",
    "exists": "[-h] [-p] [-s] key [...]",
    "watch": "[-h] [-n NR] key",
    "chmod": "[-h] [-u] [-r] [-s] key <mode [modes...]>",
    "control": "<command> [<arg>...]",
}
"""Mode to what it takes."""
_FLAGS: Final = {
    "ls": "fps",
    "read": "psR",
    "write": "sR",
    "list": "ps",
    "rm": "st",
    "exists": "s",
    "watch": "s",
    "chmod": "urs",
    "control": "",
}
_WITH_VALUE: Final = {"watch": "n"}


class UsageError(Exception):
    """The command line asks for help, or cannot be carried out."""


@dataclass(slots=True)
class Options:
    """What was given: the letters of the flags, values by letter, and the rest."""

    flags: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


def parse(mode: str, arguments: list[str]) -> Options:
    """Returns the options of a mode. Raises UsageError for -h."""
    options = Options()
    pending = list(arguments)
    while pending:
        word = pending.pop(0)
        if word == "--":
            options.words += pending
            break
        if word == "--help":
            raise UsageError
        if word.startswith("--"):
            complain(mode, f"unrecognized option '{word}'")
        elif word.startswith("-") and word != "-":
            _parse_letters(mode, word[1:], pending, options)
        else:
            options.words.append(word)
    return options


def _parse_letters(mode: str, letters: str, pending: list[str], options: Options) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter == "h" or (mode == "exists" and letter == "p"):  # which its usage names, and it refuses
            raise UsageError
        if letter in _WITH_VALUE.get(mode, ""):
            if not letters and not pending:
                complain(mode, f"option requires an argument -- '{letter}'")
                return
            options.values[letter] = letters or pending.pop(0)
            return
        if letter in _FLAGS[mode]:
            options.flags.add(letter)
        else:
            complain(mode, f"invalid option -- '{letter}'")


def complain(mode: str, text: str) -> None:
    """Writes to standard error, as the tool of that mode."""
    sys.stdout.flush()
    print(f"xenstore-{mode}: {text}", file=sys.stderr)
