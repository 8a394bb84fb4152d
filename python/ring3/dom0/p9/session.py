"""Answers requests of 9P2000.L on one shared directory.

Source: Linux, fs/9p and net/9p/client.c (what a client sends); diod, protocol.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ring3.dom0.p9 import locks, messages, xattrs
from ring3.dom0.p9.credentials import UNCHANGED, Credentials, Look, Owner
from ring3.dom0.p9.fids import Fid, Fids, Names, XattrValue
from ring3.dom0.p9.journal import Journal
from ring3.dom0.p9.listing import Listings
from ring3.dom0.p9.messages import Field, Qid, Type
from ring3.dom0.p9.tree import WRITING, Tree, check_name, self_path, step

MSIZE_MIN: Final = 4096
_GETATTR_BASIC: Final = 0x000007FF
"""Source: Linux, net/9p/9p.h, P9_STATS_BASIC."""
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE, _SET_ATIME, _SET_MTIME = 1, 2, 4, 8, 16, 32
_SET_CTIME, _SET_ATIME_GIVEN, _SET_MTIME_GIVEN = 64, 128, 256
_AT_REMOVEDIR: Final = 0x200
_LOCK_SUCCESS, _LOCK_BLOCKED = 0, 1
_NR_LOCKS_MAX: Final = 256
_V9FS_MAGIC: Final = 0x01021997
_OFFSET_MAX: Final = (1 << 63) - 1


class Session:
    """What one client has opened, and the answers to what it asks. The ring's size bounds `msize`."""

    def __init__(self, tree: Tree, credentials: Credentials, journal: Journal, msize_max: int) -> None:
        self._tree = tree
        self._credentials = credentials
        self._journal = journal
        self._msize_max = msize_max
        self._fids = Fids()
        self._listings = Listings(credentials)
        self._devices: dict[int, int] = {}
        self.msize = min(journal.msize or msize_max, msize_max)
        self._handlers: dict[Type, Callable[..., tuple[Field, ...]]] = {
            Type.VERSION: self._version,
            Type.AUTH: self._auth,
            Type.ATTACH: self._attach,
            Type.FLUSH: lambda _tag: (),  # requests are answered in their order: that one has been
            Type.WALK: self._walk,
            Type.LOPEN: self._lopen,
            Type.LCREATE: self._lcreate,
            Type.READ: self._read,
            Type.WRITE: self._write,
            Type.CLUNK: self._clunk,
            Type.REMOVE: self._remove,
            Type.STATFS: self._statfs,
            Type.SYMLINK: self._symlink,
            Type.MKNOD: self._mknod,
            Type.RENAME: self._rename,
            Type.READLINK: self._readlink,
            Type.GETATTR: self._getattr,
            Type.SETATTR: self._setattr,
            Type.XATTRWALK: self._xattrwalk,
            Type.XATTRCREATE: self._xattrcreate,
            Type.READDIR: self._readdir,
            Type.FSYNC: self._fsync,
            Type.LOCK: self._lock,
            Type.GETLOCK: self._getlock,
            Type.LINK: self._link,
            Type.MKDIR: self._mkdir,
            Type.RENAMEAT: self._renameat,
            Type.UNLINKAT: self._unlinkat,
        }
        for fid in journal.fids():
            self._restore(fid)

    def answer(self, message: bytes) -> bytes:
        """Returns the response to a whole message. Raises MalformedError: who sends such is beyond help."""
        request = messages.parse(message)
        handler = self._handlers.get(request.kind)
        try:
            if handler is None:
                raise OSError(errno.EOPNOTSUPP, request.kind.name)
            response = messages.response(request.kind, request.tag, *handler(*request.fields))
            if len(response) > self.msize:
                raise OSError(errno.EMSGSIZE, f"{len(response)} bytes of answer")
            return response
        except OSError as error:
            return messages.error(request.tag, error.errno or errno.EIO)
        except (OverflowError, ValueError, struct.error):  # numbers that no file has
            return messages.error(request.tag, errno.EINVAL)

    def close(self) -> None:
        """Lets go of every file."""
        for fid in list(self._fids):
            self._let_go(self._fids.drop(fid.number))

    # -- the session

    def _version(self, msize: int, version: bytes) -> tuple[Field, ...]:
        if msize < MSIZE_MIN:
            raise OSError(errno.EMSGSIZE, f"msize {msize}")
        self.close()
        self.msize = min(msize, self._msize_max)
        self._journal.begun(self.msize)
        return self.msize, messages.VERSION if version == messages.VERSION else b"unknown"

    def _auth(self, _afid: int, _uname: bytes, _aname: bytes, _uid: int) -> tuple[Field, ...]:
        raise OSError(errno.EOPNOTSUPP, "the domain's own kernel says who is who")

    def _attach(self, number: int, _afid: int, _uname: bytes, aname: bytes, uid: int) -> tuple[Field, ...]:
        names: Names = ()
        for name in aname.split(b"/"):
            names = step(names, name) if name else names
        look = self._look(names)
        self._take_in(Fid(number, names, 0 if uid == UNCHANGED else uid))
        return (self._qid(look),)

    def _walk(self, number: int, new_number: int, path: list[bytes]) -> tuple[Field, ...]:
        fid = self._fids.get(number)
        names, qids = fid.names, list[Qid]()
        for name in path:
            try:
                names = step(names, name)
                qids.append(self._qid(self._look(names)))
            except OSError:
                if not qids:
                    raise
                return (qids,)  # as far as it leads; there is no new fid then
        if new_number == number:
            fid.names = names
            self._journal.changed(fid)
        else:
            self._take_in(Fid(new_number, names, fid.uid))
        return (qids,)

    def _clunk(self, number: int) -> tuple[Field, ...]:
        fid = self._fids.drop(number)
        self._journal.dropped(number)
        try:
            if fid.xattr is not None and fid.xattr.flags is not None:
                xattrs.store(self._tree, fid.names, fid.xattr)
        finally:
            self._let_go(fid)
        return ()

    # -- open files

    def _lopen(self, number: int, flags: int) -> tuple[Field, ...]:
        fid = self._closed(number)
        self._fids.check_room_to_open()
        fid.fd = self._tree.open(fid.names, flags)
        return self._opened(fid, flags)

    def _lcreate(self, number: int, name: bytes, flags: int, mode: int, gid: int) -> tuple[Field, ...]:
        fid = self._closed(number)
        self._fids.check_room_to_open()
        names = _child(fid.names, name)
        fid.fd = self._credentials.create(self._tree, names, flags, mode, Owner(fid.uid, gid))
        fid.names = names
        return self._opened(fid, flags)

    def _opened(self, fid: Fid, flags: int) -> tuple[Field, ...]:
        fid.open_flags = flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
        fid.is_dir = fid.fd is not None and stat.S_ISDIR(os.fstat(fid.fd).st_mode)
        self._journal.changed(fid)
        return self._qid(self._look(fid.names)), 0

    def _read(self, number: int, offset: int, count: int) -> tuple[Field, ...]:
        fid = self._fids.get(number)
        nr_bytes = min(count, self.msize - messages.IO_HEADER_BYTES)
        if fid.xattr is not None and fid.xattr.flags is None:
            return (bytes(fid.xattr.data[offset : offset + nr_bytes]),)
        return (os.pread(self._fd(fid), nr_bytes, offset),)

    def _write(self, number: int, offset: int, data: bytes) -> tuple[Field, ...]:
        fid = self._fids.get(number)
        if fid.xattr is not None:
            return (xattrs.write(fid.xattr, offset, data),)
        return (os.pwrite(self._fd(fid), data, offset),)

    def _fsync(self, number: int, is_data_only: int) -> tuple[Field, ...]:
        (os.fdatasync if is_data_only else os.fsync)(self._fd(self._fids.get(number)))
        return ()

    def _readdir(self, number: int, offset: int, count: int) -> tuple[Field, ...]:
        fid = self._fids.get(number)
        if not fid.is_dir:
            raise OSError(errno.EBADF, "no open directory")
        room = min(count, self.msize - messages.IO_HEADER_BYTES)
        parts: list[bytes] = []
        for name, look, place in self._listings.after(fid.number, self._fd(fid), offset):
            entry = messages.dir_entry(self._qid(look), place, stat.S_IFMT(look.mode) >> 12, name)
            if len(entry) > room:
                break
            room -= len(entry)
            parts.append(entry)
        return (b"".join(parts),)

    def _lock(
        self, number: int, kind: int, _flags: int, start: int, length: int, _pid: int, _client: bytes
    ) -> tuple[Field, ...]:
        fid = self._fids.get(number)
        if not locks.set_lock(self._fd(fid), kind, start, length):
            return (_LOCK_BLOCKED,)
        if kind == fcntl.F_UNLCK and (start, length) == (0, 0):
            fid.locks.clear()
        elif len(fid.locks) < _NR_LOCKS_MAX:  # beyond that a successor does not know them
            fid.locks.append((kind, start, length))
        self._journal.changed(fid)
        return (_LOCK_SUCCESS,)

    def _getlock(self, number: int, kind: int, start: int, length: int, pid: int, client: bytes) -> tuple[Field, ...]:
        return (*locks.get_lock(self._fd(self._fids.get(number)), kind, start, length), pid, client)

    # -- names

    def _mkdir(self, number: int, name: bytes, mode: int, gid: int) -> tuple[Field, ...]:
        fid, names = self._new(number, name)
        self._credentials.mkdir(self._tree, names, mode, Owner(fid.uid, gid))
        return (self._qid(self._look(names)),)

    def _symlink(self, number: int, name: bytes, target: bytes, gid: int) -> tuple[Field, ...]:
        fid, names = self._new(number, name)
        self._credentials.symlink(self._tree, names, target, Owner(fid.uid, gid))
        return (self._qid(self._look(names)),)

    def _mknod(self, number: int, name: bytes, mode: int, major: int, minor: int, gid: int) -> tuple[Field, ...]:
        fid, names = self._new(number, name)
        rdev = os.makedev(major, minor) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0
        self._credentials.mknod(self._tree, names, mode, rdev, Owner(fid.uid, gid))
        return (self._qid(self._look(names)),)

    def _link(self, directory: int, number: int, name: bytes) -> tuple[Field, ...]:
        _fid, names = self._new(directory, name)
        self._tree.link(self._fids.get(number).names, names)
        return ()

    def _readlink(self, number: int) -> tuple[Field, ...]:
        return (self._credentials.readlink(self._tree, self._fids.get(number).names),)

    def _rename(self, number: int, directory: int, name: bytes) -> tuple[Field, ...]:
        _fid, names = self._new(directory, name)
        self._move(self._fids.get(number).names, names)
        return ()

    def _renameat(self, old: int, old_name: bytes, new: int, new_name: bytes) -> tuple[Field, ...]:
        _fid, names = self._new(new, new_name)
        self._move(_child(self._fids.get(old).names, old_name), names)
        return ()

    def _move(self, old: Names, new: Names) -> None:
        self._tree.rename(old, new)
        for fid in self._fids.renamed(old, new):
            self._journal.changed(fid)

    def _unlinkat(self, number: int, name: bytes, flags: int) -> tuple[Field, ...]:
        names = _child(self._fids.get(number).names, name)
        self._tree.remove(names, is_dir=bool(flags & _AT_REMOVEDIR))
        return ()

    def _remove(self, number: int) -> tuple[Field, ...]:
        fid = self._fids.drop(number)  # it goes whether that works or not
        self._journal.dropped(number)
        try:
            is_dir = stat.S_ISDIR(self._tree.stat(fid.names).st_mode)
            self._tree.remove(fid.names, is_dir=is_dir)
        finally:
            self._let_go(fid)
        return ()

    # -- what files are

    def _statfs(self, number: int) -> tuple[Field, ...]:
        with self._tree.at(self._fids.get(number).names) as fd:
            found = os.fstatvfs(fd)
        return (
            *(_V9FS_MAGIC, found.f_bsize, found.f_blocks, found.f_bfree, found.f_bavail),
            *(found.f_files, found.f_ffree, found.f_fsid & 0xFFFFFFFFFFFFFFFF, found.f_namemax),
        )

    def _getattr(self, number: int, _mask: int) -> tuple[Field, ...]:
        fid = self._fids.get(number)
        look = self._credentials.look(fid.fd) if fid.fd is not None else self._look(fid.names)
        host = look.host
        times = (at for ns in (host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns) for at in _split(ns))
        return (
            *(_GETATTR_BASIC, self._qid(look), look.mode, look.uid, look.gid, host.st_nlink, look.rdev),
            *(host.st_size, host.st_blksize, host.st_blocks, *times, 0, 0, 0, 0),
        )

    def _setattr(
        self, number: int, valid: int, mode: int, uid: int, gid: int, size: int, *times: int
    ) -> tuple[Field, ...]:
        self._tree.check_writable()
        fid = self._fids.get(number)
        if valid & (_SET_UID | _SET_GID):
            owner = Owner(uid if valid & _SET_UID else UNCHANGED, gid if valid & _SET_GID else UNCHANGED)
            self._credentials.chown(self._tree, fid.names, owner)
        if valid & _SET_MODE:
            self._credentials.chmod(self._tree, fid.names, mode)
        if valid & _SET_SIZE:
            if size > _OFFSET_MAX:
                raise OSError(errno.EFBIG, f"size {size:#x}")
            if fid.fd is not None and (fid.open_flags or 0) & WRITING:
                os.ftruncate(fid.fd, size)
            else:
                self._tree.truncate(fid.names, size)
        if valid & (_SET_ATIME | _SET_MTIME):
            self._set_times(fid, valid, *times)
        return ()

    def _set_times(self, fid: Fid, valid: int, atime_s: int, atime_ns: int, mtime_s: int, mtime_ns: int) -> None:
        with self._tree.at(fid.names) as fd:
            now = os.fstat(fd)
            current = time.time_ns()
            chosen = [now.st_atime_ns, now.st_mtime_ns]
            for place, (which, given, seconds, ns) in enumerate(
                ((_SET_ATIME, _SET_ATIME_GIVEN, atime_s, atime_ns), (_SET_MTIME, _SET_MTIME_GIVEN, mtime_s, mtime_ns))
            ):
                if valid & which:
                    chosen[place] = _signed(seconds) * 10**9 + ns if valid & given else current
            if stat.S_ISLNK(now.st_mode):
                with self._tree.parent(fid.names) as (parent, name):
                    os.utime(name, ns=(chosen[0], chosen[1]), dir_fd=parent, follow_symlinks=False)
            else:
                os.utime(self_path(fd), ns=(chosen[0], chosen[1]))

    # -- extended attributes

    def _xattrwalk(self, number: int, new_number: int, name: bytes) -> tuple[Field, ...]:
        fid = self._fids.get(number)
        data = xattrs.read(self._tree, fid.names, name)
        self._take_in(Fid(new_number, fid.names, fid.uid, xattr=XattrValue(name, bytearray(data))))
        return (len(data),)

    def _xattrcreate(self, number: int, name: bytes, size: int, flags: int) -> tuple[Field, ...]:
        self._tree.check_writable()
        self._closed(number).xattr = xattrs.begin(name, size, flags)
        return ()

    # -- within

    def _look(self, names: Names) -> Look:
        with self._tree.at(names) as fd:
            return self._credentials.look(fd)

    def _qid(self, look: Look) -> Qid:
        kind = look.mode
        type_ = messages.QID_DIR if stat.S_ISDIR(kind) else messages.QID_SYMLINK if stat.S_ISLNK(kind) else 0
        host = look.host
        # Inode numbers are a file system's own: others below the directory get numbers far away.
        device = self._devices.setdefault(host.st_dev, len(self._devices))
        version = (host.st_mtime_ns ^ host.st_size << 8) & 0xFFFFFFFF
        return Qid(type_, version, (host.st_ino ^ device << 48) & 0xFFFFFFFFFFFFFFFF)

    def _take_in(self, fid: Fid) -> None:
        self._fids.add(fid)
        self._journal.changed(fid)

    def _closed(self, number: int) -> Fid:
        fid = self._fids.get(number)
        if fid.is_open or fid.xattr is not None:
            raise OSError(errno.EBADF, "it is open")
        return fid

    def _fd(self, fid: Fid) -> int:
        if fid.fd is None:
            # Open before a restart, and removed since: the content went with the process that had it open.
            raise OSError(errno.EBADF if fid.open_flags is None else errno.ESTALE, "it is not open")
        return fid.fd

    def _new(self, number: int, name: bytes) -> tuple[Fid, Names]:
        self._tree.check_writable()
        fid = self._fids.get(number)
        return fid, _child(fid.names, name)

    def _let_go(self, fid: Fid) -> None:
        self._listings.drop(fid.number)
        if fid.fd is not None:
            os.close(fid.fd)
            fid.fd = None

    def _restore(self, fid: Fid) -> None:
        """Takes in a fid of a predecessor; one that was open is opened again."""
        if fid.open_flags is not None:
            with suppress(OSError):
                fid.fd = self._tree.open(fid.names, fid.open_flags)
                for lock in fid.locks:
                    locks.set_lock(fid.fd, *lock)
        with suppress(OSError):
            self._fids.add(fid)


def _child(names: Names, name: bytes) -> Names:
    return (*names, check_name(name))


def _split(ns: int) -> tuple[int, int]:
    return ns // 10**9 & 0xFFFFFFFFFFFFFFFF, ns % 10**9


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
