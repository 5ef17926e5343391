"""The miniature: how its pictures are drawn, what they truly show, and the shipped weights.

`render` draws; `measure` reads a picture back, exactly, because the renderer is known; `annotators` are the simulated
people and the hidden utility they follow; `weights/` holds the models that ship; `train.miniature` makes them.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def weights_folder(part: str) -> Path:
    """Folder of a shipped model: `pipeline`, `imagereward` or `judge`. Raises ValueError if it is not there."""
    folder = WEIGHTS / part
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: the clone is incomplete")
    return folder
