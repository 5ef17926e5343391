"""Sheets of samples: the same few prompts from the same noise, at intervals, by the policy as it would be handed over.

    <run>/samples/prompts.txt    which prompt stands where
    <run>/samples/000000.png     before training: the base, a row for each prompt set
    <run>/samples/000050.png     after 50 iterations: of each prompt set the base's row, and below it the policy's

The prompts are the first of each task's set. The noise comes from a seed that neither training nor evaluation uses, the same for every run, so that
the sheets of two runs from one base can be laid side by side. Drawing changes nothing in the training: no random state is read or
written, and an average that stands in for the weights is put back bit for bit.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from evals.diffusion import derive_seed
from evals.files import write_bytes, write_text
from prompts import Prompt
from train.config import Experiment
from train.policy import Policy

FOLDER = "samples"
COLUMNS = 8
"""Prompts of a set that are shown."""
LONGEST_SIDE = 256
"""Pixels: larger pictures are reduced, since a sheet is for the eye; `python -m evals score` keeps them whole."""
GAP = 4
SEED = derive_seed("samples")

Rows = Mapping[str, Sequence[Prompt]]
"""Prompts that are shown, by the name of their set."""


def is_due(experiment: Experiment, iteration: int) -> bool:
    """Whether a sheet belongs to the state after that many iterations: the first, every `samples_every`-th, and the last."""
    every = experiment.samples_every
    last = iteration == experiment.iterations
    return every > 0 and experiment.iterations > 0 and (last or iteration % every == 0)


def sheet_path(out: Path, iteration: int) -> Path:
    """Where the sheet of a run lies."""
    return out / FOLDER / f"{iteration:06d}.png"


def forget_after(out: Path, iteration: int) -> None:
    """Remove sheets of more iterations than a resumed run has done; below 0, all."""
    for path in (out / FOLDER).glob("*.png"):
        if re.fullmatch(r"\d{6,}", path.stem) and int(path.stem) > iteration:
            path.unlink()


def shown(experiment: Experiment, prompt_sets: Mapping[str, Iterable[Prompt]]) -> Rows:
    """The first prompts of every task's set; tasks that share one share the row."""
    names = dict.fromkeys(task.prompts for task in experiment.tasks)
    return {name: list(islice(prompt_sets[name], COLUMNS)) for name in names}


def paint(policy: Policy, rows: Rows) -> Tensor:
    """All pictures, row by row: float32 [B, 3, H, W] on the CPU.

    Every process draws all of them: where weights are shared out, a forward pass takes all processes.
    """
    texts = [prompt.text for prompts in rows.values() for prompt in prompts]
    with policy.handed_over():
        return policy.painter.paint(texts, [0] * len(texts), SEED)


def write(images_BCHW: Tensor, rows: Rows, out: Path, iteration: int) -> None:
    """Write a sheet, and which prompts it shows.

    Below the base's rows, where the sheet of iteration 0 is there: not where samples were switched on later.

    Raises:
        OSError: where the disk refuses.
    """
    pictures = iter([_picture(image) for image in images_BCHW])
    strips = [_strip([next(pictures) for _ in prompts]) for prompts in rows.values()]
    base = _cut(sheet_path(out, 0), strips) if iteration else []
    pairs = (
        [[above, below] for above, below in zip(base, strips, strict=True)] if base else [[s] for s in strips]
    )
    content = io.BytesIO()
    _stacked([strip for pair in pairs for strip in pair]).save(content, format="PNG")
    write_text(legend(rows), out / FOLDER / "prompts.txt")
    write_bytes(content.getvalue(), sheet_path(out, iteration))


def legend(rows: Rows) -> str:
    """Which prompt stands in which column."""
    lines: list[str] = []
    for name, prompts in rows.items():
        lines += [f"{short_name(name)}, from left to right", *(f"  {prompt.text}" for prompt in prompts)]
    return "\n".join(lines) + "\n"


def short_name(name: str) -> str:
    """A prompt set or scorer as one names it: of a file of one's own no path."""
    return Path(name).stem if name.endswith((".py", ".jsonl", ".txt")) else name


def _picture(image_CHW: Tensor) -> Image.Image:
    pixels = (image_CHW.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels)
    if max(picture.size) > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return picture


def _strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size beside each other, white where there are fewer than `COLUMNS`."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, height), "white")
    for column, picture in enumerate(pictures):
        strip.paste(picture, (column * (width + GAP), 0))
    return strip


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    width, height = strips[0].size
    sheet = Image.new("RGB", (width, len(strips) * (height + GAP) - GAP), "white")
    for row, strip in enumerate(strips):
        sheet.paste(strip, (0, row * (height + GAP)))
    return sheet


def _cut(path: Path, like: Sequence[Image.Image]) -> list[Image.Image]:
    """The strips of a stored sheet of as many of that size; none where it is not there or another one."""
    if not path.is_file():
        return []
    with Image.open(path) as stored:
        sheet = stored.convert("RGB")
    if sheet.size != _stacked(like).size:
        return []
    width, height = like[0].size
    return [sheet.crop((0, top, width, top + height)) for top in range(0, sheet.height, height + GAP)]
