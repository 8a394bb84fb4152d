"""What a session's successor needs, should its process end at any moment: its fids, and its last answers.

A file of lines, each a JSON array. A request's lines are written at once, when it has been carried out and before the
client sees that it was answered. So a successor knows of each request whether it was carried out, but for the moment
between a system call and this line, and carries none out twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ring3.dom0.p9.fids import Fid

_NAME: Final = "journal"
_BYTES_MAX: Final = 1 << 20
"""A file that has grown by this much is written anew."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to the request at index `out_cons` of a ring, which went to index `in_prod` of the other direction.

    No response: it says nothing that the request, carried out again, would not.
    """

    out_cons: int
    in_prod: int
    response: bytes | None


class Journal:
    """The file, in a directory of the device's own."""

    def __init__(self, directory: Path, *, is_successor: bool) -> None:
        self._path = directory / _NAME
        self._fids: dict[int, Fid] = {}
        self.msize = 0
        """What was agreed on; 0 if nothing has been."""
        self.answers: dict[int, Answer] = {}
        """The last answer on each ring."""
        self._pending: list[str] = []
        self._nr_bytes = 0
        if is_successor and self._path.exists():
            self._read()
        self._fd = -1
        self._rewrite()

    def fids(self) -> list[Fid]:
        """Returns the fids of the predecessor: none is open, whatever it says."""
        return list(self._fids.values())

    def changed(self, fid: Fid) -> None:
        """Notes a fid, new or not as it was."""
        self._fids[fid.number] = fid
        self._pending.append(_fid_line(fid))

    def dropped(self, number: int) -> None:
        """Notes that a fid is no more."""
        self._fids.pop(number, None)
        self._pending.append(json.dumps(["drop", number]))

    def begun(self, msize: int) -> None:
        """Notes that a session begins, with no fids."""
        self._fids.clear()
        self.msize = msize
        self._pending = [json.dumps(["begin", msize])]

    def answered(self, ring: int, answer: Answer) -> None:
        """Writes down what a request has changed, and its answer."""
        self.answers[ring] = answer
        lines = [*self._pending, _answer_line(ring, answer)]
        self._pending.clear()
        if self._nr_bytes > _BYTES_MAX:
            self._rewrite()
        else:
            self._write(lines)

    def close(self) -> None:
        """Closes the file, and removes it: nobody goes on."""
        os.close(self._fd)
        self._path.unlink(missing_ok=True)

    def _write(self, lines: Iterable[str]) -> None:
        data = ("\n".join(lines) + "\n").encode("latin-1")
        self._nr_bytes += os.write(self._fd, data)

    def _rewrite(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        fresh = self._path.with_suffix(".new")
        self._fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._nr_bytes = 0
        answers = [_answer_line(ring, answer) for ring, answer in self.answers.items()]
        self._write([json.dumps(["begin", self.msize]), *map(_fid_line, self._fids.values()), *answers])
        self._nr_bytes = 0
        fresh.replace(self._path)

    def _read(self) -> None:
        for line in self._path.read_text("latin-1").split("\n")[:-1]:  # what has no end was not written whole
            match json.loads(line):
                case ["begin", msize]:
                    self._fids.clear()
                    self.msize = msize
                case ["fid", *values]:
                    fid = _fid(values)
                    self._fids[fid.number] = fid
                case ["drop", number]:
                    self._fids.pop(number, None)
                case ["answer", ring, out_cons, in_prod, response]:
                    self.answers[ring] = Answer(
                        out_cons, in_prod, None if response is None else response.encode("latin-1")
                    )


def _fid_line(fid: Fid) -> str:
    names = [name.decode("latin-1") for name in fid.names]
    return json.dumps(["fid", fid.number, names, fid.uid, fid.open_flags, fid.is_dir, fid.locks])


def _fid(values: list[Any]) -> Fid:
    number, names, uid, open_flags, is_dir, locks = values
    path = tuple(name.encode("latin-1") for name in names)
    return Fid(number, path, uid, None, open_flags, is_dir, None, [(kind, at, size) for kind, at, size in locks])


def _answer_line(ring: int, answer: Answer) -> str:
    response = None if answer.response is None else answer.response.decode("latin-1")
    return json.dumps(["answer", ring, answer.out_cons, answer.in_prod, response])
