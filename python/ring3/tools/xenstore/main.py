"""The xenstore tools: one function for each, which works in a transaction where Xen's does."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ring3.errors import ConnectionLostError, XenstoreRequestError
from ring3.tools import rundir
from ring3.tools.xenstore.listing import print_tree
from ring3.tools.xenstore.options import USAGE, Options, UsageError, complain, parse
from ring3.tools.xenstore.text import escape, unescape

if TYPE_CHECKING:
    from ring3.libs.xenstore import XenstoreClient

_PERM: Final = re.compile(r"([rwbn])([+-]?[0-9]+)?")


class _Failure(Exception):  # noqa: N818 (an exit, not an error of ours)
    """The tool ends with this message and exit code 1."""


def main(command: str, arguments: list[str]) -> int:
    """Runs `xenstore-MODE ...`, or `xenstore MODE ...`; returns the exit code."""
    mode = command.removeprefix("xenstore").removeprefix("-")
    if not mode:
        if not arguments:
            print("xenstore: Usage: xenstore <mode> [-h] [...]", file=sys.stderr)
            return 1
        mode, arguments = arguments[0], arguments[1:]
    if mode not in USAGE:
        print(f"xenstore: unknown mode {mode}", file=sys.stderr)
        return 1
    try:
        options = parse(mode, arguments) if mode != "control" else Options(words=arguments)
        _check(mode, options)
    except UsageError:
        complain(mode, f"Usage: xenstore-{mode} {USAGE[mode]}")
        return 1
    # Slow to import beside the rest: bad usage is said without it.
    from ring3.libs.xenstore import XenstoreClient

    path = os.environ.get("XENSTORED_PATH") or rundir.default().xenstore
    try:
        with XenstoreClient.connect(path) as xenstore:
            return _TOOLS[mode](xenstore, options)
    except ConnectionLostError as error:
        cause = error.__cause__
        complain(mode, f"xs_open: {cause.strerror if isinstance(cause, OSError) else error}")
    except _Failure as failure:
        complain(mode, str(failure))
    return 1


def _check(mode: str, options: Options) -> None:
    nr = len(options.words)
    if mode == "write":
        if nr == 0 or nr % 2:
            raise UsageError
    elif nr == 0 and mode != "ls":
        raise UsageError


def _ls(xenstore: XenstoreClient, options: Options) -> int:
    path = options.words[0] if options.words else "/"
    try:
        print_tree(xenstore, path, full_paths="f" in options.flags, show_perms="p" in options.flags)
    except XenstoreRequestError as error:
        raise _Failure(f"xs_directory ({path}): {_reason(error)}") from error
    return 0


def _read(xenstore: XenstoreClient, options: Options) -> int:
    def read_all(tx_id: int) -> tuple[list[bytes], str | None]:
        found: list[bytes] = []
        for path in options.words:
            try:
                value = xenstore.read(path, tx_id=tx_id)
            except XenstoreRequestError as error:
                return found, _unless_again(error, f"couldn't read path {path}")
            prefix = f"{path}: ".encode() if "p" in options.flags else b""
            found.append(prefix + (value if "R" in options.flags else escape(value).encode() + b"\n"))
        return found, None

    found, failure = xenstore.transaction(read_all)
    if failure is not None:
        complain("read", failure)
    sys.stdout.buffer.write(b"".join(found))
    sys.stdout.buffer.flush()
    return int(failure is not None)


def _write(xenstore: XenstoreClient, options: Options) -> int:
    def write_all(tx_id: int) -> None:
        for path, text in zip(options.words[::2], options.words[1::2], strict=True):
            value = os.fsencode(text)
            try:
                xenstore.write(path, value if "R" in options.flags else unescape(value), tx_id=tx_id)
            except XenstoreRequestError as error:
                raise _Failure(_unless_again(error, f"could not write path {path}")) from error

    xenstore.transaction(write_all)
    return 0


def _list(xenstore: XenstoreClient, options: Options) -> int:
    def list_all(tx_id: int) -> list[str]:
        found = []
        for path in options.words:
            try:
                names = xenstore.directory(path, tx_id=tx_id)
            except XenstoreRequestError as error:
                raise _Failure(_unless_again(error, f"could not list path {path}")) from error
            prefix = f"{path}{'' if path.endswith('/') else '/'}" if "p" in options.flags else ""
            found += [prefix + name for name in names]
        return found

    for line in xenstore.transaction(list_all):
        print(line)
    return 0


def _rm(xenstore: XenstoreClient, options: Options) -> int:
    def remove(tx_id: int, path: str) -> None:
        try:
            xenstore.rm(path, tx_id=tx_id)
        except XenstoreRequestError as error:
            raise _Failure(_unless_again(error, f"could not remove path {path}")) from error

    def remove_all(tx_id: int) -> None:
        for path in options.words:
            remove(tx_id, path)
            above = path.rpartition("/")[0]
            # Tidy: parents that hold nothing go, too.
            while "t" in options.flags and above and _is_empty(xenstore, tx_id, above):
                remove(tx_id, above)
                above = above.rpartition("/")[0]

    xenstore.transaction(remove_all)
    return 0


def _is_empty(xenstore: XenstoreClient, tx_id: int, path: str) -> bool:
    try:
        return not xenstore.read(path, tx_id=tx_id) and not xenstore.directory(path, tx_id=tx_id)
    except XenstoreRequestError as error:
        if error.errno_name == "EAGAIN":
            raise
        return False


def _exists(xenstore: XenstoreClient, options: Options) -> int:
    def all_exist(tx_id: int) -> bool:
        for path in options.words:
            try:
                xenstore.read(path, tx_id=tx_id)
            except XenstoreRequestError as error:
                _unless_again(error, "")
                return False
        return True

    return int(not xenstore.transaction(all_exist))


def _watch(xenstore: XenstoreClient, options: Options) -> int:
    given = options.values.get("n")
    nr_left = None if given is None else int(given) if given.lstrip("+-").isdigit() else 0
    for path in options.words:
        try:
            xenstore.watch(path, path)
        except XenstoreRequestError as error:
            raise _Failure(f"Unable to add watch on {path}: {_reason(error)}") from error
    while nr_left is None or nr_left > 0:
        event = xenstore.next_event()
        if event is not None:
            print(event[0], flush=True)
            nr_left = None if nr_left is None else nr_left - 1
    return 0


def _chmod(xenstore: XenstoreClient, options: Options) -> int:
    perms = []
    for text in options.words[1:]:
        match = _PERM.match(text)
        if match is None:
            raise _Failure(f"Invalid permission specification: '{text[:1]}'")
        perms.append(f"{match.group(1)}{match.group(2) or 0}")

    def change(tx_id: int, path: str) -> None:
        try:
            xenstore.set_perms(path, perms, tx_id=tx_id)
        except XenstoreRequestError as error:
            text = f"Error occurred setting permissions on '{path}': {_reason(error)}"
            raise _Failure(_unless_again(error, text)) from error

    def change_all(tx_id: int) -> None:
        top = options.words[0]
        change(tx_id, top)
        above = top.rpartition("/")[0]
        while "u" in options.flags and above:
            change(tx_id, above)
            above = above.rpartition("/")[0]
        pending = [top] if "r" in options.flags else []
        while pending:
            path = pending.pop()
            for name in xenstore.directory(path, tx_id=tx_id):
                child = f"{path.rstrip('/')}/{name}"
                change(tx_id, child)
                pending.append(child)

    xenstore.transaction(change_all)
    return 0


def _control(xenstore: XenstoreClient, options: Options) -> int:
    try:
        answer = xenstore.control(*options.words)
    except XenstoreRequestError as error:
        raise _Failure(f"{' '.join(options.words)}: {_reason(error)}") from error
    print(answer)
    return 0


def _reason(error: XenstoreRequestError) -> str:
    return os.strerror(getattr(errno, error.errno_name, errno.EIO))


def _unless_again(error: XenstoreRequestError, text: str) -> str:
    """Returns the text; but what made only the transaction fail goes to who begins it again."""
    if error.errno_name == "EAGAIN":
        raise error
    return text


_TOOLS: Final[dict[str, Callable[[XenstoreClient, Options], int]]] = {
    "ls": _ls,
    "read": _read,
    "write": _write,
    "list": _list,
    "rm": _rm,
    "exists": _exists,
    "watch": _watch,
    "chmod": _chmod,
    "control": _control,
}
