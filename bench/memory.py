"""What memory a contestant takes: the proportional set sizes of its processes, and shared memory that none maps now."""

import re
from pathlib import Path

_FIELD = re.compile(r"^Pss_(Anon|File|Shmem):\s+(\d+) kB", re.MULTILINE)


def descendants(pid: int) -> list[int]:
    """Returns the process and all that it started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [pid], [pid]
    while todo:
        new = children.get(todo.pop(), [])
        found += new
        todo += new
    return found


def _shared_files(pid: int) -> dict[tuple[int, int], int]:
    """Returns the memory files that the process holds open: device and inode to bytes that are allocated."""
    found = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = str(descriptor.readlink())
        if target.startswith(("/memfd:", "/dev/shm/")):
            status = descriptor.stat()
            found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found


def used_bytes(pid: int) -> int:
    """Returns the sum of the proportional set sizes of a process and all that it started.

    Pages of a memfd that nobody has mapped at the moment are in no set, though they are in memory: where more of them
    is allocated than the sets hold, what is allocated counts.
    """
    spaces: set[str] = set()
    shared: dict[tuple[int, int], int] = {}
    for one in descendants(pid):
        try:
            # Processes may share an address space (User-Mode Linux): its ranges and sizes are then the same text.
            spaces.add(Path(f"/proc/{one}/smaps_rollup").read_text())
            shared |= _shared_files(one)
        except OSError:
            continue
    sizes = {"Anon": 0, "File": 0, "Shmem": 0}
    for text in spaces:
        for kind, kib in _FIELD.findall(text):
            sizes[kind] += int(kib) * 1024
    return sizes["Anon"] + sizes["File"] + max(sizes["Shmem"], sum(shared.values()))
