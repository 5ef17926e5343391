"""Files that are written whole or not at all: a full disk or a kill leaves the old one as it was."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def write_text(text: str, path: Path | str) -> None:
    """Write a text file in UTF-8."""
    write_bytes(text.encode("utf-8"), path)


def write_bytes(content: bytes, path: Path | str, durable: bool = True) -> None:
    """Write a file beside its place, flush it to the disk, rename it, make the name durable.

    Without `durable` a power cut may take it, which is right for many small files that can be made again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_beside(content, path, durable)
    except OSError as error:  # which tells of the file beside it, or, of a full disk, of none
        error.filename = str(path)
        raise


def _write_beside(content: bytes, path: Path, durable: bool) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(name, path)
        if durable:
            sync_folder(path.parent)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    """The permissions that new files do not get; reading them means setting them."""
    now = os.umask(0o022)
    os.umask(now)
    return now


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors() -> Iterator[None]:
    """OSError where the disk refuses: safetensors' writer has an error of its own for it."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
