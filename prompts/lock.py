"""One process at a time, where several would write the same file."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """One process at a time, by a lock file that stays; the system frees it when its process ends, however it does.

    On a network file system it holds between hosts where that carries locks (NFS with its lock service, Lustre mounted with `flock`); where it
    does not, it holds on each host by itself.

    Args:
        path: of the lock file.
        wait: until it is free; else it is asked for once.

    Yields:
        whether it was taken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        yield _taken(lock, wait)


def _taken(lock: IO[str], wait: bool) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
