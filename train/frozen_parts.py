"""What training does not change of a pipeline, written for whoever opens it: every part but the denoiser.

A part is handed over as the files of the base, byte for byte, where all versions of the libraries read in them what was trained with. Otherwise it is saved so
that they do: transformers 5 alone would leave out the prefix without which version 4 draws a text encoder's weights at random, and the
two files of a vocabulary, without which version 4 opens no tokenizer; and weights in half precision would be opened as such, while they were trained with in float32.
Pickles are never handed on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from evals.checkpoints import MERGES, PARTS, STEMS, WORDS, weight_files
from evals.weights import PICKLES

PREFIX = "text_model."
"""What version 4 wants before the names of a text encoder's tensors; both versions read it."""
PROJECTION = "text_projection."
"""What it wants as it is."""


def save_frozen(pipeline: Any, folder: Path) -> None:
    """Write a pipeline's index and all of its parts but the denoiser.

    Args:
        pipeline: of `evals.checkpoints.load_pipeline`, or one that comes from no folder.
        folder: to write to.
    """
    pipeline.save_config(folder)
    base = getattr(pipeline, "opened_from", None)
    for part in PARTS:
        component = getattr(pipeline, part, None)
        if part == "unet" or component is None:
            continue
        files = [] if base is None else readable_by_all(base, part)
        (folder / part).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / part / file.name)
        if not files:
            _save(component, part, folder / part)


def readable_by_all(base: Path, part: str) -> list[Path]:
    """The files of a part of a base that can be handed over as they are; none where the part must be saved, or is not there any more."""
    there = sorted(file for ending in ("json", "txt") for file in (base / part).glob(f"*.{ending}"))
    if part.startswith("tokenizer"):
        return there if {WORDS, MERGES} <= {file.name for file in there} else []
    if part not in STEMS or not there:
        return there
    try:
        variant, weights = weight_files(base, part)
    except ValueError:  # gone since it was opened: what was opened is saved
        return []
    config = base / part / "config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    pickled = any(file.suffix in PICKLES for file in weights)
    if pickled or variant or {said.get("dtype"), said.get("torch_dtype")} - {None, "float32"}:
        return []
    wanted = (PREFIX, PROJECTION) if part.startswith("text_encoder") else ("",)
    for file in weights:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if not name.startswith(wanted) or tensors.get_slice(name).get_dtype() not in ("F32", "I64"):
                    return []
    index = base / part / f"{STEMS[part]}.safetensors.index.json"
    return [config, *weights, *([index] if len(weights) > 1 and index.is_file() else [])]


def _save(component: Any, part: str, folder: Path) -> None:
    """A part as versions 4 and 5 of transformers read it."""
    if part.startswith("text_encoder"):
        tensors = {
            name if name.startswith((PREFIX, PROJECTION)) else PREFIX + name: tensor.cpu().contiguous()
            for name, tensor in component.state_dict().items()
        }
        component.config.save_pretrained(folder)
        save_file(tensors, folder / f"{STEMS[part]}.safetensors", {"format": "pt"})
        return
    component.save_pretrained(folder)  # in safetensors
    if part.startswith("tokenizer"):
        component.backend_tokenizer.model.save(str(folder))  # its two files
