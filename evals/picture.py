"""One picture for a README or a slide: base and tuned, side by side, from the same noise."""

from __future__ import annotations

import io
import random
from pathlib import Path

from PIL import Image

from evals.ballots import open_picture
from evals.files import write_bytes

GAP, ZOOM = 6, 2


def write(base: Path, tuned: Path, out: Path, columns: int = 6, rows: int = 4, seed: int = 1) -> None:
    """Pairs of pictures (left base, right tuned) of prompts drawn at random with a fixed seed, not chosen by anyone.

    Half the rows show the miniature's portraits, half the rest, as far as there are enough of both.

    Raises:
        ValueError: a folder is not there, the two have too few pictures in common, one of them cannot be opened, or `out` lies among them.
    """
    for folder in (base, tuned):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: score that run first")
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"--out {out} lies among the pictures of {folder}: choose another place")
    names = _drawn(base, tuned, columns * rows, seed)
    width, height = (side * ZOOM for side in open_picture(base / names[0]).size)
    sheet = Image.new("RGB", (columns * (2 * width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for place, name in enumerate(names):
        left, top = place % columns * (2 * width + GAP), place // columns * (height + GAP)
        for side, folder in enumerate((base, tuned)):
            picture = open_picture(folder / name).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + side * width, top))
    content = io.BytesIO()
    sheet.save(content, format="PNG", optimize=True)
    write_bytes(content.getvalue(), out)


def _drawn(base: Path, tuned: Path, count: int, seed: int) -> list[Path]:
    """Files that both folders have, one image of a prompt, half of them portraits as far as there are enough."""
    rng = random.Random(seed)
    both = [
        p.relative_to(base) for p in sorted(base.glob("*/*/0.png")) if (tuned / p.relative_to(base)).is_file()
    ]
    portraits = [p for p in both if "portraits" in p.parts[0]]
    others = [p for p in both if "portraits" not in p.parts[0]]
    if len(both) < count:
        raise ValueError(
            f"{base} and {tuned} have the first pictures of {len(both)} prompts in common, too few for a sheet of {count}: score both runs first"
        )
    half = max(min(count // 2, len(portraits)), count - len(others))
    return rng.sample(others, count - half) + rng.sample(portraits, half)
