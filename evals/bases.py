"""Where a pipeline says what it is, and which other one to take where its repository is gone."""

from __future__ import annotations

from pathlib import Path

from evals.architectures import MAINTAINED
from evals.hub import hub_file, is_kept

INDEX = "model_index.json"


def pipeline_index(found: str, revision: str | None = None, how: str = "name") -> Path:
    """The file that names a pipeline's parts, of a folder in diffusers layout, or fetched: a few hundred bytes.

    Args:
        found: from `evals.checkpoints.find_base`, but no checkpoint in one file.
        revision: of a hub id; None takes the newest.
        how: the words that come before what to take instead.

    Raises:
        ValueError: as `evals.hub.hub_file`, with another base where the repository is gone.
    """
    here = Path(found) / INDEX
    return here if here.is_file() else hub_file(found, INDEX, revision, another_base(found, how))


def is_here(found: str, revision: str | None = None) -> bool:
    """Whether a pipeline is on this machine, or was fetched once: `owner/name` may be a hub's id, and a path as seen from another folder.

    Args:
        found: from `evals.checkpoints.find_base`.
        revision: of a hub id; None takes the newest.
    """
    return Path(found).exists() or is_kept(found, INDEX, revision)


def another_base(repository: str, how: str = "name") -> str:
    """What to take where that repository is gone: where others keep the same weights, that first."""
    kept = MAINTAINED.get(repository)
    copy = f"others keep its weights at {kept}; " if kept else ""
    return f"{copy}{how} another hub id, a folder in diffusers layout or a .safetensors file"
