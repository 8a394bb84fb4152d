"""9P2000.L answered without a domain: what clients may do, and what hostile ones get."""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.dom0.p9 import messages
from ring3.dom0.p9.credentials import HostCredentials
from ring3.dom0.p9.fids import NR_FIDS_MAX
from ring3.dom0.p9.journal import Answer, Journal
from ring3.dom0.p9.messages import Field, MalformedError, Type
from ring3.dom0.p9.session import Session
from ring3.dom0.p9.tree import Tree

_MSIZE = 65536


class Client:
    """A session on a directory, and requests to it."""

    def __init__(self, path: Path, place: Path, *, is_successor: bool = False, is_read_only: bool = False) -> None:
        self.journal = Journal(place, is_successor=is_successor)
        tree = Tree(path, is_read_only=is_read_only)
        self.session = Session(tree, HostCredentials(), self.journal, _MSIZE)
        if not is_successor:
            assert self.ask(Type.VERSION, 65536, b"9P2000.L") == (65536, b"9P2000.L")
            self.ask(Type.ATTACH, 0, messages.NO_FID, b"", b"", 0)

    def ask(self, kind: Type, *fields: Field) -> tuple[Field, ...]:
        """Returns the fields of the answer. Raises OSError with its error."""
        response = self.session.answer(messages.request(kind, 7, *fields))
        self.journal.answered(0, Answer(0, 0, None))
        answer = messages.parse_response(response)
        assert answer.tag == 7
        if answer.kind is Type.LERROR:
            raise OSError(answer.fields[0], kind.name)
        assert answer.kind is kind
        return answer.fields

    def code(self, kind: Type, *fields: Field) -> int:
        """Returns the error that a request gets."""
        with pytest.raises(OSError) as caught:
            self.ask(kind, *fields)
        return int(caught.value.errno or 0)


@pytest.fixture
def share(tmp_path: Path) -> Path:
    path = tmp_path / "share"
    path.mkdir()
    (path / "file").write_bytes(b"content")
    (path / "directory").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (path / "out").symlink_to(tmp_path)
    return path


@pytest.fixture
def client(share: Path, tmp_path: Path) -> Iterator[Client]:
    made = Client(share, tmp_path)
    yield made
    made.session.close()


def test_version_unknown_is_said_so(share: Path, tmp_path: Path) -> None:
    client = Client(share, tmp_path)
    assert client.ask(Type.VERSION, 8192, b"9P2000.u") == (8192, b"unknown")
    assert client.ask(Type.VERSION, 1 << 30, b"9P2000.L")[0] == _MSIZE, "not more than the ring takes"
    assert client.code(Type.VERSION, 100, b"9P2000.L") == errno.EMSGSIZE
    assert client.code(Type.GETATTR, 0, 0) == errno.EBADF, "a new session has no fids"


def test_file_is_made_written_read_and_removed(client: Client, share: Path) -> None:
    client.ask(Type.WALK, 0, 1, [])
    client.ask(Type.LCREATE, 1, b"new", os.O_RDWR | os.O_CREAT, 0o640, 0)
    assert client.ask(Type.WRITE, 1, 3, b"data") == (4,)
    assert client.ask(Type.READ, 1, 0, 100) == (b"\0\0\0data",)
    assert (share / "new").stat().st_mode & 0o777 == 0o640
    client.ask(Type.REMOVE, 1)
    assert not (share / "new").exists()
    assert client.code(Type.READ, 1, 0, 1) == errno.EBADF


def test_open_file_outlives_its_name(client: Client, share: Path) -> None:
    client.ask(Type.WALK, 0, 1, [b"file"])
    client.ask(Type.LOPEN, 1, os.O_RDWR)
    client.ask(Type.UNLINKAT, 0, b"file", 0)
    assert client.ask(Type.READ, 1, 0, 100) == (b"content",)
    fields = client.ask(Type.GETATTR, 1, 0x7FF)
    assert fields[5] == 0, "it has no links left"
    assert not (share / "file").exists()


def test_fids_follow_a_rename(client: Client) -> None:
    client.ask(Type.MKDIR, 0, b"inner", 0o755, 0)
    client.ask(Type.WALK, 0, 1, [b"inner"])
    client.ask(Type.RENAMEAT, 0, b"inner", 0, b"renamed")
    client.ask(Type.GETATTR, 1, 0)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ([b"out", b"secret"], 0),
        ([b"..", b"secret"], 0),
        ([b"directory", b"..", b"..", b"..", b"secret"], 0),
        ([b"../secret"], errno.EINVAL),
        ([b"/etc/passwd"], errno.EINVAL),
        ([b""], errno.EINVAL),
        ([b"file\0"], errno.EINVAL),
        ([b"file", b"x"], 0),
        ([b"x" * 300], errno.ENAMETOOLONG),
    ],
)
def test_walks_out_lead_nowhere(client: Client, path: list[bytes], code: int) -> None:
    if code:
        assert client.code(Type.WALK, 0, 1, path) == code
    else:  # as far as it leads
        qids = client.ask(Type.WALK, 0, 1, path)[0]
        assert isinstance(qids, list) and len(qids) < len(path)
    assert client.code(Type.GETATTR, 1, 0) == errno.EBADF, "there is no new fid"


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/x", b"a\0b"])
def test_names_that_are_paths_are_refused(client: Client, name: bytes, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    for kind, fields in (
        (Type.MKDIR, (0, name, 0o755, 0)),
        (Type.SYMLINK, (0, name, b"target", 0)),
        (Type.MKNOD, (0, name, 0o100644, 0, 0, 0)),
        (Type.LINK, (0, 0, name)),
        (Type.UNLINKAT, (0, name, 0)),
        (Type.RENAMEAT, (0, b"file", 0, name)),
        (Type.RENAMEAT, (0, name, 0, b"new")),
        (Type.LCREATE, (0, name, os.O_RDWR, 0o644, 0)),
    ):
        assert client.code(kind, *fields) in (errno.EINVAL, errno.EEXIST), kind
    assert sorted(tmp_path.iterdir()) == before


def test_link_swapped_in_while_fids_are_about_leads_nowhere(client: Client, share: Path, tmp_path: Path) -> None:
    (share / "directory" / "secret").write_bytes(b"mine")
    client.ask(Type.WALK, 0, 1, [b"directory", b"secret"])
    (share / "directory").rename(share / "aside")
    (share / "directory").symlink_to(tmp_path)
    assert client.code(Type.LOPEN, 1, os.O_RDONLY) in (errno.ELOOP, errno.ENOTDIR)
    client.ask(Type.WALK, 0, 2, [b"out"])
    assert client.code(Type.LOPEN, 2, os.O_RDONLY) == errno.ELOOP
    assert client.ask(Type.READLINK, 2) == (os.fsencode(tmp_path),)


def test_special_files_are_not_opened(client: Client, share: Path) -> None:
    os.mkfifo(share / "fifo")
    client.ask(Type.WALK, 0, 1, [b"fifo"])
    assert client.code(Type.LOPEN, 1, os.O_RDONLY) == errno.EACCES
    assert client.code(Type.LCREATE, 0, b"fifo", os.O_RDWR, 0o600, 0) == errno.EACCES
    assert client.code(Type.MKNOD, 0, b"null", 0o020666, 1, 3, 0) == errno.EPERM


def test_fid_abuse_is_answered(client: Client) -> None:
    assert client.code(Type.WALK, 99, 1, []) == errno.EBADF
    client.ask(Type.WALK, 0, 1, [b"file"])
    assert client.code(Type.WALK, 0, 1, [b"file"]) == errno.EBADF, "a fid in use"
    client.ask(Type.LOPEN, 1, os.O_RDONLY)
    assert client.code(Type.LOPEN, 1, os.O_RDONLY) == errno.EBADF
    assert client.code(Type.WRITE, 1, 0, b"x") == errno.EBADF
    assert client.code(Type.READDIR, 1, 0, 100) == errno.EBADF
    assert client.code(Type.READ, 1, 1 << 63, 100) in (errno.EINVAL, errno.EOVERFLOW)
    assert client.code(Type.LOCK, 1, 9, 0, 0, 0, 1, b"") == errno.EINVAL
    assert client.code(Type.UNLINKAT, 0, b"directory", 0) == errno.EISDIR
    assert client.code(Type.REMOVE, 0) == errno.EACCES, "the root stays"
    for number in range(2, NR_FIDS_MAX + 2):
        if client.session.answer(messages.request(Type.WALK, 1, 1, number, []))[4] != Type.WALK + 1:
            break
    assert number == NR_FIDS_MAX + 1


def test_long_listing_comes_in_parts(client: Client, share: Path) -> None:
    for number in range(500):
        (share / "directory" / f"file-{number}").touch()
    client.ask(Type.WALK, 0, 1, [b"directory"])
    client.ask(Type.LOPEN, 1, os.O_RDONLY | os.O_DIRECTORY)
    names, offset = [], 0
    while data := client.ask(Type.READDIR, 1, offset, 1000)[0]:
        assert isinstance(data, bytes) and len(data) <= 1000
        while data:
            _qid, offset, _kind, length = struct.unpack_from("<13sQBH", data)
            names.append(data[24 : 24 + length])
            data = data[24 + length :]
    assert len(names) == len(set(names)) == 502


def test_successor_goes_on_where_the_process_ended(client: Client, share: Path, tmp_path: Path) -> None:
    client.ask(Type.WALK, 0, 1, [b"file"])
    client.ask(Type.LOPEN, 1, os.O_RDWR)
    client.ask(Type.LOCK, 1, 1, 0, 0, 10, 1, b"guest")
    client.ask(Type.WALK, 0, 2, [b"directory"])
    client.ask(Type.RENAMEAT, 0, b"directory", 0, b"moved")
    client.ask(Type.WALK, 0, 3, [b"file"])
    client.ask(Type.CLUNK, 3)
    client.session.close()
    # What it had not written down whole is no harm.
    with (tmp_path / "journal").open("a") as file:
        file.write('["drop", 1')
    successor = Client(share, tmp_path, is_successor=True)
    assert successor.ask(Type.READ, 1, 0, 3) == (b"con",)
    successor.ask(Type.GETATTR, 2, 0)
    assert successor.code(Type.GETATTR, 3, 0) == errno.EBADF
    other = Client(share, tmp_path / "moved-journal" if (tmp_path / "moved-journal").mkdir() else tmp_path)
    other.ask(Type.WALK, 0, 1, [b"file"])
    other.ask(Type.LOPEN, 1, os.O_RDWR)
    successor.session.close()


def test_share_for_reading_changes_nothing(share: Path, tmp_path: Path) -> None:
    client = Client(share, tmp_path, is_read_only=True)
    client.ask(Type.WALK, 0, 1, [b"file"])
    for kind, fields in (
        (Type.LOPEN, (1, os.O_RDWR)),
        (Type.LOPEN, (1, os.O_RDONLY | os.O_TRUNC)),
        (Type.SETATTR, (1, 1, 0o777, 0, 0, 0, 0, 0, 0, 0)),
        (Type.UNLINKAT, (0, b"file", 0)),
        (Type.MKDIR, (0, b"d", 0o755, 0)),
        (Type.LINK, (0, 1, b"l")),
        (Type.RENAMEAT, (0, b"file", 0, b"x")),
        (Type.XATTRCREATE, (1, b"user.x", 1, 0)),
        (Type.LCREATE, (0, b"n", os.O_RDWR, 0o600, 0)),
        (Type.REMOVE, (1,)),
    ):
        assert client.code(kind, *fields) == errno.EROFS, kind
    assert (share / "file").read_bytes() == b"content"


_FIELD = {
    "B": st.integers(0, 255),
    "H": st.integers(0, 0xFFFF),
    "I": st.integers(0, 0xFFFFFFFF) | st.integers(0, 3),
    "Q": st.integers(0, (1 << 64) - 1) | st.integers(0, 100),
    "s": st.sampled_from([b"file", b"directory", b"..", b"out", b"", b"/", b"a\0", b"user.x", b"new"]) | st.binary(),
    "d": st.binary(max_size=100),
    "w": st.lists(st.sampled_from([b"file", b"..", b"directory", b"out", b"secret"]), max_size=5),
}


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Draws a request with fields of the right kinds."""
    kind = draw(st.sampled_from([kind for kind in Type if kind is not Type.LERROR]))
    fields = [draw(_FIELD[letter]) for letter in messages.LAYOUTS[kind][0]]
    return messages.request(kind, draw(st.integers(0, 0xFFFF)), *fields)


@given(st.lists(requests(), max_size=30))
def test_hostile_requests_harm_nobody_outside(tmp_path_factory: pytest.TempPathFactory, sent: list[bytes]) -> None:
    top = tmp_path_factory.mktemp("hostile")
    (top / "share" / "directory").mkdir(parents=True)
    (top / "share" / "file").write_bytes(b"content")
    (top / "share" / "out").symlink_to("..")
    (top / "secret").write_bytes(b"secret")
    (top / "journal").mkdir()
    client = Client(top / "share", top / "journal")
    for message in sent:
        response = client.session.answer(message)
        assert len(response) <= _MSIZE and b"secret" not in response.replace(b"directory/secret", b"")
    client.session.close()
    assert (top / "secret").read_bytes() == b"secret"
    assert sorted(path.name for path in top.iterdir()) == ["journal", "secret", "share"]


@given(st.binary(min_size=7, max_size=200))
def test_hostile_bytes_are_no_request(data: bytes) -> None:
    message = struct.pack("<I", len(data)) + data[4:]
    try:
        request = messages.parse(message)
    except MalformedError:
        return
    assert request.kind in Type
