"""xenstore-ls: the tree, with values and permissions, fitted to the width of the terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from ring3.errors import XenstoreRequestError
from ring3.tools.xenstore.text import escape

if TYPE_CHECKING:
    from ring3.libs.xenstore import XenstoreClient

_WIDTH: Final = 80
"""Where the output is no terminal."""
_MARGIN: Final = 2
_TAG_CHARS: Final = 8
"""What a value that is cut off takes beside its text."""
_PERMS_COLUMN: Final = 60


def print_tree(xenstore: XenstoreClient, top: str, *, full_paths: bool, show_perms: bool) -> None:
    """Prints what is below a node. Raises XenstoreRequestError if that is not there."""
    width = None if full_paths else _width()
    pending = [(top.rstrip("/"), name, 0) for name in reversed(xenstore.directory(top))]
    while pending:  # does not recurse: depth is whoever's choice
        above, name, depth = pending.pop()
        path = f"{above}/{name}"
        _print_node(xenstore, path, depth, width, show_perms=show_perms)
        pending += [(path, child, depth + 1) for child in reversed(xenstore.directory_optional(path))]


def _width() -> int:
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        return _WIDTH
    return columns - _MARGIN if columns > _MARGIN else _WIDTH


def _print_node(xenstore: XenstoreClient, path: str, depth: int, width: int | None, *, show_perms: bool) -> None:
    if width is None:
        line = path
    else:
        line = " " * depth
        line += path.rpartition("/")[2][: max(0, width - _TAG_CHARS - len(line))]
    try:
        value = xenstore.read(path)
    except XenstoreRequestError:
        print(f"{line}:")
        return
    text = escape(value)
    if width is not None and width < len(line) + len(value) + _TAG_CHARS:
        line += f' = "{text[: max(0, width - _TAG_CHARS - len(line))]}\\..."'
    else:
        line += f' = "{text}"'
        if show_perms:
            line += " "
            if width is not None:
                line += "".join(".  "[column % 2 == 0] for column in range(len(line), min(_PERMS_COLUMN, width)))
    if show_perms:
        line += f"  ({','.join(xenstore.get_perms(path))})"
    print(line)
