"""Prompt files of others: never part of this repository, but fetched from theirs at a commit, and held to a SHA-256.

Where the environment variable T2I_PROMPTS_DIR names a folder, the files are taken from there and nothing is fetched, which is how a machine
without a network is served. Otherwise they are fetched once into `$XDG_CACHE_HOME/t2i-prompts` (`~/.cache/t2i-prompts` without the
variable). A file gets its name when it is whole. Of several processes that need it one fetches, the others wait and read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from prompts.lock import locked

FOLDER = "T2I_PROMPTS_DIR"
SECONDS = 60
"""How long a server may say nothing."""
BLOCK = 2**20
_silent: set[str] = set()
"""Hosts that did not answer this process: a firewall that drops everything makes it wait once, not for each of their files."""


class Missing(ValueError):
    """A file that is not here and cannot be fetched."""

    def __init__(self, message: str, file: File) -> None:
        super().__init__(message)
        self.file = file


@dataclass(frozen=True)
class File:
    """A file as others have published it."""

    url: str
    kept: Mapping[str, str]
    """Names under which it may lie in the folder or the cache, and the SHA-256 that it then has. The first is the file at `url`; another may be
    the same file renamed, or without its repeated lines."""

    def path(self) -> Path:
        """The file on this machine, fetched where it is not there yet, and checked.

        Raises:
            Missing: no network, a folder without the file, or another content behind the address than is expected.
            ValueError: other content than is expected on this machine, a disk that refuses.
        """
        if folder := os.environ.get(FOLDER):
            return self._in(Path(folder))
        name, sha256 = next(iter(self.kept.items()))

        def fetch(part: Path) -> None:
            try:
                _download(self.url, sha256, part)
            except ValueError as error:
                raise Missing(
                    f"{error}; a copy of your own is read as {name} below a folder that {FOLDER} names", self
                ) from error

        path = made_once(cache_folder() / name, fetch)
        _check(path, sha256, "delete it, and it is fetched again")
        return path

    def _in(self, folder: Path) -> Path:
        for name, sha256 in self.kept.items():
            path = folder / name
            if path.is_file():
                _check(path, sha256, f"the right one is {self.url}")
                return path
        raise Missing(
            f"{FOLDER} is {folder}, in which there is no {' or '.join(self.kept)}: put {self.url} there, "
            "or unset the variable, and it is fetched",
            self,
        )


def github(repository: str, commit: str, path: str, kept: Mapping[str, str]) -> File:
    """A file of a repository at a commit."""
    return File(f"https://raw.githubusercontent.com/{repository}/{commit}/{path}", kept)


def cache_folder() -> Path:
    """Where fetched files, and what is made of them, are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2i-prompts"


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """A file or folder that the first process to need it makes, while the others wait.

    Args:
        path: where it will lie.
        make: writes it at the path that it is given; whole, it is renamed.

    Raises:
        ValueError: the disk refuses; or what `make` raises.
    """
    if path.exists():
        return path
    part = path.with_name(f".{path.name}.part")
    try:
        with locked(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                _remove(part)  # of a process that was killed
                try:
                    make(part)
                    part.replace(path)
                finally:
                    _remove(part)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ValueError(
            f"{path} cannot be written ({reason}): XDG_CACHE_HOME names another folder"
        ) from error
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _download(url: str, sha256: str, part: Path) -> None:
    print(f"fetching {url}", file=sys.stderr)
    found = hashlib.sha256()
    with part.open("wb") as out:
        for block in _blocks(url):
            found.update(block)
            out.write(block)
    if found.hexdigest() != sha256:
        raise ValueError(
            f"{url} is not the file that is expected (SHA-256 {found.hexdigest()[:12]} instead of {sha256[:12]})"
        )


def _blocks(url: str) -> Iterator[bytes]:
    """The content behind an address, piece by piece.

    Raises:
        ValueError: it cannot be had, or not to its end.
    """
    host = urlsplit(url).netloc
    if host in _silent:
        raise ValueError(f"{url} cannot be fetched ({host} did not answer before)")
    try:
        with _opened(url, host) as answer:
            length = answer.headers.get("Content-Length")
            received = 0
            while block := answer.read(BLOCK):
                received += len(block)
                yield block
    except HTTPError as error:
        raise ValueError(
            f"{url} cannot be fetched (the server answers {error.code} {error.reason})"
        ) from error
    except (OSError, HTTPException) as error:
        raise ValueError(f"{url} cannot be fetched ({getattr(error, 'reason', error)})") from error
    if length is not None and received != int(length):
        raise ValueError(f"{url} broke off after {received} of {length} bytes")


def _opened(url: str, host: str) -> Any:
    """The answer, whose content is still to be read."""
    try:
        return urlopen(url, timeout=SECONDS)
    except HTTPError:
        raise
    except OSError:
        _silent.add(host)
        raise


def _check(path: Path, sha256: str, remedy: str) -> None:
    try:
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ValueError(f"{path}: the prompt file cannot be read ({reason})") from error
    if found != sha256:
        raise ValueError(
            f"{path} is not the file that is expected (SHA-256 {found[:12]} instead of {sha256[:12]}), "
            f"or was not copied to its end: {remedy}"
        )
