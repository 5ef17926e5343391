"""Draws a suite's prompts with a checkpoint, keeps the pictures, and turns them into score rows.

Pictures are kept as PNG and read back before they are scored, so that a score can always be had again from what is on
disk. A killed scoring goes on where it was: pictures that are there are not drawn again, and rows of a finished scorer
lie in `<out>.partial` until all are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

import prompts
from evals import rows as score_rows
from evals import scorers, suites
from evals.checkpoints import Checkpoint, first_line, resolve
from evals.diffusion import Painter, exact_device
from evals.files import write_bytes, write_text
from evals.scorers import Scorer
from evals.suites import Part, Suite
from prompts import Prompt
from prompts.lock import locked

CHUNK = 96
SHOWN = 384
"""Pictures in memory where a scorer sees each by itself: 1.2 GB at 512 pixels. Scorers go through them in parts of 32, 64 or 128, which divide it."""
BASE = "base"


@dataclass(frozen=True)
class Item:
    """One picture to draw: the i-th of a prompt."""

    prompt: Prompt
    image: int

    def path(self, folder: Path) -> Path:
        """Where it lies below the folder of its prompt set."""
        return folder / self.prompt.id / f"{self.image}.png"


def items_of(part: Part) -> list[Item]:
    """Every picture of a part, prompt by prompt."""
    return [
        Item(prompt, i) for prompt in prompts.load(part.prompt_set) for i in range(part.images_per_prompt)
    ]


def score(target: str, out: Path, suite: str | None) -> None:
    """Score a checkpoint on a suite into a CSV file; pictures go to `images/` beside the file's folder.

    Args:
        target: what `evals.checkpoints.resolve` takes.
        out: the file.
        suite: its name; None takes that of the domain of a run.

    Raises:
        ValueError: the target or the suite is none, or it is not said which, in one sentence.
    """
    checkpoint = resolve(target)
    chosen = suites.load(suite or suites.of_domain(checkpoint.domain, target))
    if checkpoint.domain not in (None, chosen.domain):
        raise ValueError(
            f"suite {suite} looks at pictures of the domain {chosen.domain}, but {target} draws those of {checkpoint.domain}"
        )
    device = str(exact_device())
    # of all parts before any picture is drawn: what is refused here is refused at once
    loaded = {
        name: scorers.load(name, device, chosen.domain) for part in chosen.parts for name in part.scorers
    }
    images = out.parent.parent / "images"
    pictures = Pictures(checkpoint, chosen, images, device)
    rows = _unfinished(out, checkpoint) if pictures.kept else []
    for part in chosen.parts:
        rows = _score_part(
            part, {name: loaded[name] for name in part.scorers}, checkpoint, pictures, rows, out
        )
    score_rows.write(pd.concat(rows), out)
    _partial(out).unlink(missing_ok=True)


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _unfinished(out: Path, checkpoint: Checkpoint) -> list[pd.DataFrame]:
    """Rows of an earlier scoring that did not end, of the same checkpoint."""
    if not _partial(out).is_file():
        return []
    rows = score_rows.read([_partial(out)]).drop(columns="file")
    same = (rows["experiment"] == checkpoint.experiment) & (rows["seed"] == checkpoint.seed)
    return [rows] if bool(same.all()) else []


def _score_part(
    part: Part,
    loaded: Mapping[str, Scorer],
    checkpoint: Checkpoint,
    pictures: Pictures,
    rows: list[pd.DataFrame],
    out: Path,
) -> list[pd.DataFrame]:
    items = items_of(part)
    there = pd.concat(rows) if rows else pd.DataFrame(columns=list(score_rows.COLUMNS))
    todo = {name: s for name, s in loaded.items() if not _is_there(there, part, name, s.version, len(items))}
    if not todo:
        return rows
    paths = pictures.of(part, items)
    hashes = [picture_hash(path) for path in paths]
    base = pictures.of_base(part, items) if any(s.scope == "paired" for s in todo.values()) else []
    bar = tqdm(todo.items(), desc=f"scoring {part.prompt_set}", file=sys.stderr)
    for name, scorer in bar:
        bar.set_postfix_str(name)
        if note := scorers.what_is_cut(name, scorer, part.prompt_set, prompts.load(part.prompt_set)):
            bar.write(note, file=sys.stderr)
        values = _values(name, scorer, items, paths, base)
        made = _rows_of(checkpoint, pictures.suite, part, items, hashes, name, scorer.version, values)
        rows = [*_without(rows, part, name), made]
        score_rows.write(pd.concat(rows), _partial(out))
    return rows


def _values(
    name: str, scorer: Scorer, items: Sequence[Item], paths: Sequence[Path], base: Sequence[Path]
) -> Tensor:
    """A scorer's answers [B]. One that sees each picture by itself is shown `SHOWN` at a time, the others all of them.

    Args:
        name: of the scorer.
        scorer: to be asked.
        items: what was drawn.
        paths: where it lies.
        base: the same of the base, for a scorer of scope "paired".

    Raises:
        ValueError: see `_asked`.
    """
    if scorer.scope == "paired":
        return _asked(name, scorer, items, _stacked(paths), _stacked(base))
    at_once = SHOWN if scorer.scope == "image" else len(items)
    parts = (slice(i, i + at_once) for i in range(0, len(items), at_once))
    return torch.cat([_asked(name, scorer, items[part], _stacked(paths[part])) for part in parts])


def _asked(
    name: str, scorer: Scorer, items: Sequence[Item], images: Tensor, base: Tensor | None = None
) -> Tensor:
    """A scorer's answers [B], held to the contract.

    Raises:
        ValueError: where its weights do not open, it raises, or its answer is not one number in its range for each picture.
    """
    asked = [item.prompt for item in items]

    def whose(number: int) -> str:
        return f"prompt {items[number].prompt.id}, image {items[number].image}"

    try:
        return scorers.ask(name, scorer, images, asked, whose, base)
    except scorers.ScorerFailed as failure:
        cause = failure.__cause__
        if isinstance(cause, OSError | SafetensorError):
            raise ValueError(
                f"the weights of scorer {name} cannot be opened: {first_line(cause)}"
            ) from failure
        if isinstance(cause, ValueError):  # a sentence of its own, on what it was given
            raise ValueError(str(cause)) from failure
        raise ValueError(f"{failure}: mend the scorer or its weights") from failure


def _is_there(rows: pd.DataFrame, part: Part, scorer: str, version: str, count: int) -> bool:
    mine = rows[(rows["prompt_set"] == part.prompt_set) & (rows["scorer"] == scorer)]
    return len(mine) == count and bool((mine["version"] == version).all())


def _without(rows: list[pd.DataFrame], part: Part, scorer: str) -> list[pd.DataFrame]:
    """Rows but for those of one scorer on one prompt set, which are about to be made."""
    kept = [r[(r["prompt_set"] != part.prompt_set) | (r["scorer"] != scorer)] for r in rows]
    return [r for r in kept if len(r)]


def _rows_of(
    checkpoint: Checkpoint,
    suite: Suite,
    part: Part,
    items: Sequence[Item],
    hashes: Sequence[str],
    scorer: str,
    version: str,
    values: Tensor,
) -> pd.DataFrame:
    trained, digest = int(scorer in checkpoint.rewards), prompts.digest(prompts.load(part.prompt_set))
    return score_rows.table(
        score_rows.Row(
            checkpoint.experiment,
            checkpoint.model,
            checkpoint.seed,
            suite.drawn,
            part.prompt_set,
            digest,
            item.prompt.id,
            item.image,
            picture,
            scorer,
            version,
            trained,
            value,
        )
        for item, picture, value in zip(items, hashes, values.tolist(), strict=True)
    )


class Pictures:
    """The pictures of one checkpoint and of its base, on disk, drawn where they are missing."""

    def __init__(self, checkpoint: Checkpoint, suite: Suite, folder: Path, device: str = "cpu") -> None:
        self.checkpoint, self.suite, self.root, self.device = checkpoint, suite, folder, device
        self._painter: Painter | None = None
        self._told: set[str] = set()  # prompt sets of which it was said what is cut
        mine = folder / checkpoint.name
        source = _source(checkpoint, suite)
        # one scoring at a time decides whose pictures a folder holds: several may need the base's
        with locked(folder / f".{checkpoint.name}.lock"):
            self.kept = _is_claimed(mine, source)
            if not self.kept:
                # before pictures are removed: weights that do not open cost nothing
                self._painter = self._new_painter()
                _claim(mine, source)

    def _new_painter(self) -> Painter:
        return Painter.of(self.checkpoint.pipeline().to(self.device), self.suite.sampling)

    def of(self, part: Part, items: Sequence[Item]) -> list[Path]:
        """Where they lie, all there and of one size.

        Raises:
            ValueError: naming one of another size.
        """
        folder = self.root / self.checkpoint.name / part.prompt_set
        missing = [item for item in items if not _is_picture(item.path(folder))]
        if missing:
            if self._painter is None:
                self._painter = self._new_painter()
            self._say_what_is_cut(self._painter, part)
            for item, picture in _draw(self._painter, missing, self.suite, f"drawing {part.prompt_set}"):
                _save(picture, item.path(folder))
        paths = [item.path(folder) for item in items]
        _refuse_other_sizes(paths)
        return paths

    def of_base(self, part: Part, items: Sequence[Item]) -> list[Path]:
        """The base's pictures of the same prompts and noise; the checkpoint's own where it is the base."""
        if self.checkpoint.experiment == BASE:
            return self.of(part, items)
        base = Pictures(self.checkpoint.its_base(), self.suite, self.root, self.device)
        base._told = self._told
        return base.of(part, items)

    def _say_what_is_cut(self, painter: Painter, part: Part) -> None:
        """Name prompts that the model will not read to their end, once."""
        if part.prompt_set in self._told:
            return
        self._told.add(part.prompt_set)
        if note := painter.encoder.what_is_cut(part.prompt_set, prompts.load(part.prompt_set)):
            print(note, file=sys.stderr)


def _refuse_other_sizes(paths: Sequence[Path]) -> None:
    """Refuse pictures of several sizes.

    Raises:
        ValueError: naming the first that is of another size than most.
    """
    sizes = [_size(path) for path in paths]
    (usual, _), *others = Counter(sizes).most_common()
    if others:
        odd, path = next((size, path) for size, path in zip(sizes, paths, strict=True) if size != usual)
        raise ValueError(
            f"{path} is {odd[0]} x {odd[1]} pixels, but most are {usual[0]} x {usual[1]}: "
            f"delete this one, and it is drawn again"
        )


def _size(path: Path) -> tuple[int, int]:
    """Width and height."""
    with Image.open(path) as picture:
        return picture.size


def _stacked(paths: Sequence[Path]) -> Tensor:
    """float32 [B, 3, H, W] in [0, 1], as the PNG files hold them."""
    return torch.stack([_read(path) for path in paths])


MARK = "source.json"


def _source(checkpoint: Checkpoint, suite: Suite) -> str:
    """What decides the pictures."""
    return json.dumps({"weights": checkpoint.digest(), "sampling": repr(suite.sampling), "seed": suite.seed})


def _is_claimed(folder: Path, source: str) -> bool:
    """Whether the folder's pictures are of these weights and this suite, its `_source`.

    Raises:
        ValueError: where it is no folder of pictures at all.
    """
    mark = folder / MARK
    if mark.is_file():
        return mark.read_bytes() == source.encode()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is where pictures go, but holds something else: move it away")
    return False


def _claim(folder: Path, source: str) -> None:
    """Make the folder this checkpoint's; pictures of other weights or another suite are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    # the mark goes last: killed here, the folder is still the earlier checkpoint's
    for old in folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    write_text(source, folder / MARK)


def _draw(painter: Painter, items: Sequence[Item], suite: Suite, title: str) -> Iterator[tuple[Item, Tensor]]:
    """Draw with each image's own noise, a chunk at a time."""
    with tqdm(total=len(items), desc=title, unit="image", file=sys.stderr) as bar:
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            drawn = painter.paint([i.prompt.text for i in chunk], [i.image for i in chunk], suite.seed)
            yield from zip(chunk, drawn, strict=True)
            bar.update(len(chunk))


def _save(picture_CHW: Tensor, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    pixels = (picture_CHW.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG")
    write_bytes(encoded.getvalue(), path, durable=False)


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.verify()
    except (OSError, SyntaxError):  # not there, cut off, no picture
        return False
    return True


def picture_hash(path: Path) -> str:
    """12 hex characters of the SHA-256 of a picture's size and RGB pixels: the same for the same picture in another file format."""
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
        return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()[:12]


def _read(path: Path) -> Tensor:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)
