"""Files that are written whole or not at all: a full disk or a kill leaves the old one as it was."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""What somebody's pictures may end in."""
EXTERNAL = "external"
"""The model of a checkpoint or of pictures that are of no run of this project."""
MARK = "source.json"
"""In a folder of pictures: which weights and which suite drew them."""


def write_text(text: str, path: Path | str) -> None:
    """Write a text file in UTF-8."""
    write_bytes(text.encode("utf-8"), path)


def write_bytes(content: bytes, path: Path | str, durable: bool = True) -> None:
    """Write a file beside its place, flush it to the disk, rename it, make the name durable.

    Without `durable` a power cut may take it, which is right for many small files that can be made again.
    """
    try:
        _write_beside(content, path, durable)
    except OSError as error:  # which tells of the file beside it, or, of a full disk, of none
        error.filename = str(path)
        raise


def _write_beside(content: bytes, path: Path | str, durable: bool) -> None:
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.part")
    handle = _new_file(beside)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
    if durable:
        sync_folder(Path(folder))


def _new_file(path: str) -> int:
    """Open a file that nobody else has, with the permissions that the umask leaves; its folder is made where it is missing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o666)


def as_the_umask_leaves(folder: Path) -> None:
    """Make weights below a folder as readable as the folders that they are in: safetensors writes files that only their owner may read."""
    for path in folder.rglob("*.safetensors"):
        wanted = path.parent.stat().st_mode & 0o666
        mode = path.stat().st_mode & 0o777
        if wanted & ~mode:
            path.chmod(mode | wanted)


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
