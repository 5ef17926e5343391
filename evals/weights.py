"""Weights that others have published: where they lie, which ones exactly, and under what terms they may be used.

A file is looked for in the folder named by T2I_WEIGHTS_DIR, as `<repository>/<file>`, and then on the hub and among its earlier downloads. What is
opened is a safetensors file, or a pickle in the reader that runs no code of it.
"""

from __future__ import annotations

import hashlib
import os
import pickle  # noqa: TID251  for the name of its error only
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from evals.hub import hub_file

FOLDER = "T2I_WEIGHTS_DIR"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Endings of files of tensors that are pickles."""
TENSORS = (".safetensors", *PICKLES)
"""Endings of all files of tensors that are opened."""
_accepted: set[str] = set()


@dataclass(frozen=True)
class Weights:
    """Files of a repository on the hub that belong together."""

    repository: str
    """Its id, `owner/name`."""
    files: tuple[str, ...]
    """Names in the repository, all of them needed."""
    licence: str
    """As its owner states it, and where that is not plain, what is unclear."""
    free: bool
    """Whether anybody may use them for anything, commerce included. Others need --accept-terms."""
    revision: str | None = None
    """Commit; None takes the newest."""
    sha256: tuple[str, ...] = ()
    """Of the files, in their order; empty where they are not known beforehand; a run's card has those of what it used."""

    def __post_init__(self) -> None:
        assert not self.sha256 or len(self.sha256) == len(self.files)

    def paths(self) -> list[Path]:
        """The files on this machine, fetched where they are not there yet, and checked.

        Raises:
            ValueError: terms that were not accepted, files that cannot be had (see `evals.hub`), or another content than is expected.
        """
        refuse_unaccepted([self])
        found = [self._find(name) for name in self.files]
        for path, expected in zip(found, self.sha256, strict=False):
            if (digest := sha256_of(path)) != expected:
                # among the hub's downloads it is a link, and would be made again to the same content
                content = path.resolve()
                raise ValueError(
                    f"{path} is not the {path.name} of {self.repository} that is expected (sha256 {digest[:12]} instead of {expected[:12]}), "
                    f"or was not downloaded to its end: delete {'it' if content == path.absolute() else content}, and it is fetched again"
                )
        return found

    def folder(self) -> Path:
        """The folder that holds all of them, as `from_pretrained` takes it.

        Raises:
            ValueError: as `paths`, or where some lie in the folder named by T2I_WEIGHTS_DIR and others do not.
        """
        found = zip(self.paths(), self.files, strict=True)
        folders = {path.parents[len(Path(name).parts) - 1]: name for path, name in found}
        if len(folders) > 1:
            (one, first), (other, second), *_ = folders.items()
            raise ValueError(
                f"the files of {self.repository} lie in two folders, {first} in {one} and {second} in {other}: put all of them into one"
            )
        return next(iter(folders))

    def digest(self) -> str:
        """Over the content of all files: 64 hex digits. Fetches them only where their hashes are not known beforehand."""
        return hashlib.sha256("".join(self.hashes().values()).encode()).hexdigest()

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by its name, as they are expected, or else as they are."""
        found = self.sha256 or [sha256_of(path) for path in self.paths()]
        return dict(zip(self.files, found, strict=True))

    def here(self, name: str) -> Path | None:
        """A file's place on this machine, in the folder that T2I_WEIGHTS_DIR names or among earlier downloads; None where it is not there. Nothing is fetched or checked."""
        from huggingface_hub import try_to_load_from_cache

        if (own := self._own(name)) is not None and own.is_file():
            return own
        cached = try_to_load_from_cache(self.repository, name, revision=self.revision)
        return Path(cached) if isinstance(cached, str) else None

    def _own(self, name: str) -> Path | None:
        """Where a file lies in the folder that T2I_WEIGHTS_DIR names."""
        return Path(os.environ[FOLDER]) / self.repository / name if FOLDER in os.environ else None

    def _find(self, name: str) -> Path:
        own = self._own(name)
        where = f"; a copy of your own is read as {self.repository}/{name} below a folder that {FOLDER} names"
        if own is not None:
            if own.is_file():
                return own
            where = f", nor at {own}, where {FOLDER} has it"
        try:
            return hub_file(self.repository, name, self.revision)
        except ValueError as error:
            raise ValueError(f"{error}{where}") from error


@dataclass(frozen=True)
class Carried:
    """A file of others' weights that a package of the environment carries, so that nothing is fetched. Anybody may use it for anything."""

    package: str
    file: str
    """Its name in the package."""
    licence: str
    """Of the weights, which need not be the package's, as their owner states it."""

    def path(self) -> Path:
        """The file on this machine."""
        package = find_spec(self.package)
        assert package is not None, "requirements.in names it"
        assert package.origin is not None
        return Path(package.origin).parent / self.file


def accept_terms(repositories: Iterable[str]) -> None:
    """Note that the user has read the terms of these repositories and may use them."""
    _accepted.update(repositories)


def refuse_unaccepted(weights: Iterable[Weights]) -> None:
    """Refuse weights with terms that not everybody can accept, unless `accept_terms` was called for them.

    Raises:
        ValueError: naming the repository, its licence and the option.
    """
    for one in weights:
        if not one.free and one.repository not in _accepted:
            raise ValueError(
                f"the weights of {one.repository} are not free for every use ({one.licence}): "
                f"if you may use them, say --accept-terms {one.repository}"
            )


def sha256_of(path: Path) -> str:
    """64 hex digits over a file's content, taken once for as long as the file stays as it is."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_tensors(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """Tensors by name, on the CPU: of a safetensors file, or of a pickle that holds nothing else.

    Args:
        path: of the file.
        mapped: whether those of a pickle may stay in the file, where its form allows it, until their numbers are used: for names and shapes alone.

    Raises:
        ValueError: naming the file, where it is damaged, no file of tensors, or a pickle that wants to run code.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    with path.open("rb") as content:
        lazily = mapped and is_zipfile(content)
        content.seek(0)
        source = path if lazily else content
        try:
            loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=lazily)  # noqa: TID251  runs no code of the file
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} is a pickle that holds more than tensors, or is damaged, and is not opened: a file from somebody else could run code; "
                "convert it to safetensors elsewhere, in a sandbox"
            ) from error
        except Exception as error:  # over half a file the reader stumbles in many ways
            raise ValueError(f"{path} is damaged, or not downloaded to its end") from error
    tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} holds no dictionary of tensors by name")
    return dict(tensors)
