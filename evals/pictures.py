"""Pictures on disk: those that a checkpoint draws where they are missing, or somebody's own; each read once for all scorers.

Both are a `Source`: `Pictures` of a checkpoint, `Given` of a folder. A checkpoint's lie in `<folder>/<name>/<prompt set>/<prompt id>/<index>.png`, and belong to the weights
and the suite that drew them (`source.json`). Several processes, also of several hosts that share the folder, draw together: a chunk at a time, each behind a lock. Where a file
system carries no locks between hosts, two may draw the same chunk: the files are equal bit for bit, and written whole, so that time is lost and nothing else.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import prompts
from evals import layout, rows
from evals.checkpoints import Checkpoint, say
from evals.cut import how_many_are_cut
from evals.diffusion import Painter
from evals.files import EXTERNAL, MARK, write_bytes, write_text
from evals.rgb import as_png, as_rgb
from evals.rows import BASE
from evals.suites import Part, Suite
from prompts import Prompt
from prompts.lock import locked

Found = TypeVar("Found")

CHUNK = 96
"""Pictures that a process draws before it looks what others have drawn: about as many, in whole micro-batches."""
THREADS = 4
"""That read and decode pictures, or encode and write them: of 512 pixels one takes 8 ms of a core."""
SMALLEST = 64
"""Pixels of the shorter side of somebody's picture: with fewer it is an icon, of which no scorer here can tell anything."""
LARGEST = 64 * 2**20
"""Pixels of a picture: with more it is no picture of such a model, and would fill the memory."""
UNFIT = {
    "missing": "a prompt's pictures are numbered from 0",
    "too large": f"more than {LARGEST} pixels",
    "too small": f"a side of less than {SMALLEST} pixels",
    "of 16 bits a channel or more": "save with 8",
    "of another size than most": "bring all to one size",
}
"""For what somebody's picture is not scored, and what to know of it."""
NAMED = 3
"""Unfit pictures of a kind that a sentence names."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is no picture, or not all of one."""


@dataclass(frozen=True)
class Item:
    """One picture of a suite: the i-th of a prompt."""

    prompt: Prompt
    image: int

    def path(self, folder: Path) -> Path:
        """Where it lies below the folder of its prompt set."""
        return Path(self.name(folder))

    def name(self, folder: Path) -> str:
        """The same as text."""
        return f"{folder}/{self.prompt.id}/{self.image}.png"


def items_of(part: Part) -> list[Item]:
    """Every picture of a part, prompt by prompt."""
    return [
        Item(prompt, i) for prompt in prompts.load(part.prompt_set) for i in range(part.images_per_prompt)
    ]


# ---------------------------------------------------------------------------------------------------------------- reading


class Read(NamedTuple):
    """A picture in memory, and how it became RGB."""

    pixels_HWC: NDArray[np.uint8]
    made: str
    """What was done to make it RGB, empty where it was."""

    @property
    def digest(self) -> str:
        """See `evals.rows.picture_hash`."""
        height, width, _ = self.pixels_HWC.shape
        return rows.picture_hash((width, height), self.pixels_HWC.tobytes())

    @property
    def is_black(self) -> bool:
        """Whether every pixel is 0: what a safety checker leaves of a picture that it objects to."""
        return not self.pixels_HWC.any()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels_HWC.shape[1], self.pixels_HWC.shape[0]


def read(path: Path | str) -> Read:
    """A picture file, whole and at 8 bits a channel.

    Raises:
        OSError, SyntaxError, ValueError and others of `DAMAGE`: there is none, or it is damaged.
    """
    content = Path(path).read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        picture.verify()  # the checksums of a PNG, which decoding passes over
    with Image.open(io.BytesIO(content)) as picture:
        rgb, made = as_rgb(picture)
        return Read(np.asarray(rgb), made)


def stacked(pictures: Sequence[Read]) -> Tensor:
    """float32 [B, 3, H, W] in [0, 1] of pictures of one size.

    Channels last, as they are decoded and as a VAE's convolutions leave them: the miniature's judge takes a third less time for them than for planes.
    """
    pixels_BHWC = np.stack([picture.pixels_HWC for picture in pictures])
    # in one go: there is no second array of that size
    return torch.from_numpy(np.divide(pixels_BHWC, 255, dtype=np.float32)).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------------------------------ clock


@dataclass
class Clock:
    """What the time of this process went into, since it was last asked."""

    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count the time that the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def drained(self) -> dict[str, float]:
        """All that was counted, with "total", and from now on anew."""
        now = time.perf_counter()
        spent = {**self.seconds, "total": now - self.since}
        self.seconds, self.since = {}, now
        return spent


# ---------------------------------------------------------------------------------------------------------------- sources


class Source(Protocol):
    """Where a suite's pictures are."""

    name: str
    """Of whom they are."""
    clock: Clock

    def path(self, part: Part, item: Item) -> Path:
        """Of a picture."""

    def files(self, part: Part, items: Sequence[Item]) -> list[str]:
        """The same as text of some, for what is asked of every picture again and again: pathlib takes longer than the disk."""

    def are_there(self, part: Part, items: Sequence[Item]) -> bool:
        """Whether all have a file."""

    def make(self, part: Part, items: Sequence[Item], wait: bool) -> None:
        """Make what is missing of a part's; without `wait`, only what no other process is making."""

    def read(self, part: Part, items: Sequence[Item]) -> list[Read | None]:
        """Some of a part's, None for one that cannot be decoded, or is unfit. Raises ValueError where they are of several sizes."""

    def unfit(self, part: Part, items: Sequence[Item]) -> list[str]:
        """For which of `UNFIT` each of a part's is not read; empty where it is."""

    def truncated(self, part: Part) -> int | None:
        """How many prompts the model does not read to their end, None where that is not known."""

    def base(self) -> Source | None:
        """The base's pictures of the same prompts; itself where this is the base, None where there are none."""


class Pictures:
    """The pictures of one checkpoint, drawn where they are missing."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        suite: Suite,
        folder: Path,
        device: str = "cpu",
        clock: Clock | None = None,
    ) -> None:
        """Claim the checkpoint's folder; pictures of other weights, of a run that was trained again, are removed from it, and it is said.

        Raises:
            ValueError: the folder holds something else, or pictures that these weights drew for another suite, or other weights under the name of
                somebody's checkpoint; or the weights do not open.
        """
        self.checkpoint, self.suite, self.root, self.device = checkpoint, suite, folder, device
        self.name = checkpoint.name
        self.clock = clock or Clock()
        self._painter: Painter | None = None
        self._base: Pictures | None = None
        self._says = True
        self._cut_files: dict[str, Path] = {}
        mine = folder / checkpoint.name
        self.digest = checkpoint.digest()
        self._mark = source = _source(self.digest, suite)
        # one scoring at a time decides whose pictures a folder holds: several may need the base's
        with locked(self._lock("claim")):
            if not _is_claimed(mine, source):
                held = _drawn_by(mine)
                if held == self.digest:  # they may have taken days, and the scores of them are still good
                    raise ValueError(
                        f"{mine} holds what these weights drew for another suite, or for an earlier form of this one: give --out a folder of its own, "
                        "or move these pictures away"
                    )
                # its name is that of its folder, and two trainings have a `checkpoint-1000` each
                if held and checkpoint.model == EXTERNAL:
                    name = "" if checkpoint.experiment == BASE else "give this checkpoint another --name, or "
                    raise ValueError(
                        f"{mine} holds what other weights drew under the name {checkpoint.experiment}: {name}give --out a folder of its own, or move these pictures away"
                    )
                # before pictures are removed: weights that do not open cost nothing
                self._open()
                if held:
                    say(f"note: the pictures in {mine} are of other weights, and are removed")
                _claim(mine, source)

    def _lock(self, what: str) -> Path:
        return self.root / f".{self.checkpoint.name}.locks" / what

    def _open(self) -> Painter:
        if self._painter is None:
            self._painter = self._new_painter()
        return self._painter

    def _new_painter(self) -> Painter:
        return Painter.of(self.checkpoint.pipeline().to(self.device), self.suite.sampling)

    def path(self, part: Part, item: Item) -> Path:
        """Of a picture."""
        return item.path(self._folder(part))

    def files(self, part: Part, items: Sequence[Item]) -> list[str]:
        """The same as text."""
        folder = self._folder(part)
        return [item.name(folder) for item in items]

    def _folder(self, part: Part) -> Path:
        return self.root / self.checkpoint.name / part.prompt_set

    def are_there(self, part: Part, items: Sequence[Item]) -> bool:
        """Whether all have a file."""
        return not self._missing(part, items)

    def _missing(self, part: Part, items: Sequence[Item]) -> list[Item]:
        files = self.files(part, items)
        return [item for item, file in zip(items, files, strict=True) if not os.path.isfile(file)]

    def make(self, part: Part, items: Sequence[Item], wait: bool) -> None:
        """Draw what is missing, a chunk of whole micro-batches at a time, so that none is filled up for nothing.

        A chunk is encoded and written beside, while the next is drawn where that is faster. Its lock goes with it, and is free when all its files are there. No third is in memory.
        """
        missing = len(self._missing(part, items))
        if not missing:
            return
        micro_batch = self.suite.sampling.micro_batch
        at_once = max(1, CHUNK // micro_batch) * micro_batch
        # where this is left by an error or Ctrl-C, the executor first ends what it writes: what was drawn is kept
        with bar(f"drawing {part.prompt_set}", missing) as told, ThreadPoolExecutor(1) as beside:
            saving: Future[None] | None = None
            for start in range(0, len(items), at_once):
                chunk = items[start : start + at_once]
                if self.are_there(part, chunk):
                    continue
                with ExitStack() as held:
                    if not held.enter_context(locked(self._lock(f"{part.prompt_set}-{start}"), wait)):
                        continue
                    if todo := self._missing(part, chunk):
                        drawn = self._drawn(part, todo)
                        self._until_saved(saving)
                        self._refuse_lost()
                        saving = beside.submit(_save_all, drawn, self.files(part, todo), held.pop_all())
                        if not self._draws_on:
                            self._until_saved(saving)
                        told.update(len(todo))
            self._until_saved(saving)

    @property
    def _draws_on(self) -> bool:
        """Whether it draws while a chunk is written: not on a CPU, whose cores all wait for the one that is taken from them."""
        return self.device != "cpu"

    def _drawn(self, part: Part, items: Sequence[Item]) -> NDArray[np.uint8]:
        """Draw with each image's own noise: 8 bits [B, H, W, 3]."""
        painter = self._open()
        self._count_cut(part, painter)
        with self.clock.of("drawing"):
            drawn_BCHW = painter.paint(
                [item.prompt.text for item in items], [item.image for item in items], self.suite.seed
            )
        if not drawn_BCHW.isfinite().all():
            raise ValueError(
                f"{self.checkpoint.source} draws NaN, no picture, of a prompt of {part.prompt_set}: its weights are damaged, or of another model"
            )
        pixels_BHWC: NDArray[np.uint8] = (
            (drawn_BCHW.numpy() * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        )
        return pixels_BHWC

    def _until_saved(self, saving: Future[None] | None) -> None:
        """Wait for what is written beside. Raises what kept it from being written."""
        if saving is not None:
            with self.clock.of("saving"):
                saving.result()

    def _refuse_lost(self) -> None:
        """Refuse to go on where another command has taken the folder for other pictures.

        Raises:
            ValueError: naming it.
        """
        mine = self.root / self.name
        if not _is_claimed(mine, self._mark):
            raise ValueError(
                f"another command now draws other pictures into {mine}: end it, or score the two one after the other, or into two folders"
            )

    def read(self, part: Part, items: Sequence[Item]) -> list[Read | None]:
        """Some of a part's, of one size; one that is damaged is drawn again.

        Raises:
            ValueError: naming one of another size; or the folder holds other pictures by now.
        """
        self._refuse_lost()
        with self.clock.of("reading"):
            files = self.files(part, items)
            found = _in_threads(lambda place: _read_or_none(files[place]), len(files))
        damaged = [place for place, picture in enumerate(found) if picture is None]
        if damaged:
            say(f"note: {files[damaged[0]]} is damaged and is drawn again{and_more(len(damaged))}")
            drawn = self._drawn(part, [items[place] for place in damaged])
            for place, pixels_HWC in zip(damaged, drawn, strict=True):
                _save(pixels_HWC, files[place])
                found[place] = read(files[place])
        refuse_other_sizes(files, [picture.size for picture in found if picture], "and it is drawn again")
        return found

    def unfit(self, part: Part, items: Sequence[Item]) -> list[str]:
        """None is: what is missing is drawn, and all are drawn alike."""
        return [""] * len(items)

    def truncated(self, part: Part) -> int:
        """How many prompts the model does not read to their end."""
        kept = self._cut_file(part)
        if not kept.is_file():
            self._count_cut(part, self._open())
        return int(json.loads(kept.read_text(encoding="utf-8"))["truncated"])

    def _cut_file(self, part: Part) -> Path:
        """Where it is kept how many prompts are cut: to count them takes the tokenizer, which takes the weights."""
        name = part.prompt_set
        if name not in self._cut_files:
            digest = prompts.digest(prompts.load(name))
            self._cut_files[name] = self.root / self.checkpoint.name / f".{name}-{digest}.json"
        return self._cut_files[name]

    def _count_cut(self, part: Part, painter: Painter) -> None:
        """Count prompts that the model will not read to their end, and say it, once."""
        kept = self._cut_file(part)
        if kept.is_file():
            return
        asked = prompts.load(part.prompt_set)
        count = how_many_are_cut(asked, painter.encoder.is_cut)
        if count and self._says:
            say(painter.encoder.what_is_cut(part.prompt_set, asked))
        write_text(json.dumps({"truncated": count}), kept)

    def base(self) -> Pictures:
        """The base's pictures of the same prompts and noise; the checkpoint's own where it is the base."""
        if self.checkpoint.experiment == BASE:
            return self
        if self._base is None:
            theirs = self.checkpoint.its_base()
            self._base = Pictures(theirs, self.suite, self.root, self.device, self.clock)
            self._base._says = False  # it reads the same prompts
        return self._base


class Given:
    """Somebody's pictures, in a folder: nothing is drawn and nothing written."""

    def __init__(
        self,
        folder: Path,
        suite: Suite,
        name: str,
        base: Given | None = None,
        others: Sequence[str] = (),
        skip_unfit: bool = False,
    ) -> None:
        """Find every picture that the suite asks for, and look at its header.

        In either layout of `evals.layout`, indices from 0; without folders of prompt sets where the suite has one.

        Args:
            folder: of the pictures.
            suite: that they are of.
            name: what their rows call them.
            base: the base's pictures, for scorers that compare with them.
            others: prompt sets whose folders are left alone.
            skip_unfit: leave out what is missing or cannot be scored, and say why of each (`unfit`), where something is left.

        Raises:
            ValueError: pictures are missing, are not the suite's, or cannot be scored: all of them in one sentence.
        """
        if not folder.is_dir():
            raise ValueError(f"there is no folder of pictures {folder}")
        self.folder, self.suite, self.name, self._base = folder, suite, name, base
        self.clock: Clock = base.clock if base else Clock()
        self.paths = {
            part.prompt_set: _found(where, part) for part, where in _folders(folder, suite, others).items()
        }
        self._unfit = {
            path: why for paths in self.paths.values() for path, why in _unfit(list(paths.values())).items()
        }
        self._refuse_unfit(skip_unfit)

    def _refuse_unfit(self, skip: bool) -> None:
        """Raises ValueError, naming unfit pictures, unless they are to be skipped and leave something to score of every prompt set."""
        empty = [name for name, paths in self.paths.items() if self._unfit.keys() >= {*paths.values()}]
        if not self._unfit or (skip and not empty):
            return
        total = sum(map(len, self.paths.values()))
        then = (
            f"nothing is left to score of {empty[0]}"
            if empty
            else "mend them, or score the others with --skip-unfit"
        )
        raise ValueError(
            f"{len(self._unfit)} of the {total} pictures in {self.folder} cannot be scored ({_listed(self._unfit, self.folder)}): {then}"
        )

    def path(self, part: Part, item: Item) -> Path:
        """Of a picture."""
        return self.paths[part.prompt_set][item.prompt.id, item.image]

    def files(self, part: Part, items: Sequence[Item]) -> list[str]:
        """The same as text."""
        return [str(self.path(part, item)) for item in items]

    def are_there(self, part: Part, items: Sequence[Item]) -> bool:
        """They are, or it would have been refused."""
        return True

    def make(self, part: Part, items: Sequence[Item], wait: bool) -> None:
        """Nothing is missing."""

    def read(self, part: Part, items: Sequence[Item]) -> list[Read | None]:
        """Some of a part's, None for one that cannot be decoded, or is unfit."""
        with self.clock.of("reading"):
            files, unfit = self.files(part, items), self.unfit(part, items)
            return _in_threads(
                lambda place: None if unfit[place] else _read_or_none(files[place]), len(files)
            )

    def unfit(self, part: Part, items: Sequence[Item]) -> list[str]:
        """For what each is not scored."""
        found = (self._unfit.get(self.path(part, item)) for item in items)
        return [why.kind if why else "" for why in found]

    def truncated(self, part: Part) -> None:
        """What drew them is not known."""

    def base(self) -> Given | None:
        """The base's, where they were given; itself where this is the base."""
        return self if self.name == BASE else self._base


def bar(title: str, total: int) -> tqdm[Any]:
    """Progress in pictures, on the first of several processes."""
    speaks = os.environ.get("RANK", "0") == "0"
    return tqdm(total=total, desc=title, unit="image", file=sys.stderr, disable=not speaks)


def and_more(count: int) -> str:
    """What a sentence that names the first says of the others."""
    return f", as are {count - 1} more" if count > 1 else ""


def refuse_other_sizes(paths: Sequence[Path | str], sizes: Sequence[tuple[int, int]], then: str) -> None:
    """Refuse pictures of several sizes.

    Args:
        paths: of the pictures.
        sizes: width and height of each.
        then: what happens once the odd one is deleted.

    Raises:
        ValueError: naming the first that is of another size than most.
    """
    (usual, _), *others = Counter(sizes).most_common() or [((0, 0), 0)]
    if others:
        odd, path = next((size, path) for size, path in zip(sizes, paths, strict=True) if size != usual)
        raise ValueError(
            f"{path} is {odd[0]} x {odd[1]} pixels, but most are {usual[0]} x {usual[1]}: delete this one, {then}"
        )


def _in_threads(work: Callable[[int], Found], count: int) -> list[Found]:
    """What some work gives for 0 to `count` - 1, each of `THREADS` threads at its own share: with a task for each, the tasks take as long as a small picture."""

    def share(first: int) -> list[Found]:
        return [work(place) for place in range(first, count, THREADS)]

    with ThreadPoolExecutor(THREADS) as threads:
        shares = list(threads.map(share, range(THREADS)))
    return [shares[place % THREADS][place // THREADS] for place in range(count)]


def _read_or_none(path: str) -> Read | None:
    try:
        return read(path)
    except DAMAGE:
        return None


# ------------------------------------------------------------------------------------------------------- a checkpoint's


def _source(weights: str, suite: Suite) -> str:
    """What decides the pictures."""
    return json.dumps({"weights": weights, "sampling": repr(suite.sampling), "seed": suite.seed})


def _is_claimed(folder: Path, source: str) -> bool:
    """Whether the folder's pictures are of these weights and this suite, its `_source`.

    Raises:
        ValueError: where it is no folder of pictures at all.
    """
    mark = folder / MARK
    if mark.is_file():
        return mark.read_bytes() == source.encode()
    # a kill may leave behind a mark that was not yet in its place
    if folder.exists() and (
        not folder.is_dir() or any(not f.name.startswith(f".{MARK}.") for f in folder.iterdir())
    ):
        raise ValueError(f"{folder} is where pictures go, but holds something else: move it away")
    return False


def _drawn_by(folder: Path) -> str | None:
    """The weights that drew the pictures in a folder; None where there is none, or nothing says it."""
    try:
        weights = str(json.loads((folder / MARK).read_text(encoding="utf-8"))["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return weights if any(inside.is_dir() for inside in folder.iterdir()) else None


def _claim(folder: Path, source: str) -> None:
    """Make the folder this checkpoint's; pictures that are in it are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    # the mark goes last: killed here, the folder is still the earlier checkpoint's
    for old in folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != MARK:
            old.unlink()
    write_text(source, folder / MARK)


def _save_all(pixels_BHWC: NDArray[np.uint8], files: Sequence[str], held: ExitStack) -> None:
    """Write pictures, then let go of what is held."""
    with held:
        _in_threads(lambda place: _save(pixels_BHWC[place], files[place]), len(files))


def _save(pixels_HWC: NDArray[np.uint8], file: str) -> None:
    """Write a PNG, whole or not at all."""
    write_bytes(as_png(pixels_HWC), file, durable=False)


# ------------------------------------------------------------------------------------------------------------ somebody's


def _folders(folder: Path, suite: Suite, others: Sequence[str] = ()) -> dict[Part, Path]:
    """Where the prompts of each part are; folders of other prompt sets that are named are left alone.

    Raises:
        ValueError: a prompt set has no folder, or a folder is no prompt set's.
    """
    sets = [part.prompt_set for part in suite.parts]
    there = layout.subfolders(folder)
    if len(sets) == 1 and sets[0] not in there:
        return {suite.parts[0]: folder}
    if lacking := [name for name in sets if name not in there]:
        raise ValueError(
            f"{folder} has no folder {lacking[0]}: suite {suite.name} asks for the prompt sets {', '.join(sets)}, each in a folder of its name"
        )
    if unknown := sorted(there.keys() - {*sets, *others}):
        raise ValueError(
            f"{folder / unknown[0]} is no prompt set of suite {suite.name}: it has {', '.join(sets)}"
        )
    return {part: there[part.prompt_set] for part in suite.parts}


def _found(folder: Path, part: Part) -> dict[tuple[str, int], Path]:
    """The picture files of a part by prompt id and index; where one is missing, what it would be.

    Raises:
        ValueError: see `Given`.
    """
    there = layout.by_prompt(folder, part.prompt_set)
    ids = [prompt.id for prompt in prompts.load(part.prompt_set)]
    if unknown := sorted(there.keys() - {*ids}):
        raise ValueError(
            f"{there[unknown[0]]} is of no prompt of {part.prompt_set}: its prompts have ids such as {ids[0]}"
        )
    wanted, more = part.images_per_prompt, 0
    found: dict[tuple[str, int], Path] = {}
    for one in ids:
        where = there.get(one, folder / one)
        files = layout.numbered(where)
        found |= {(one, i): files.get(i, where / f"{i}.png") for i in range(wanted)}
        more += len(files) > wanted
    if more:
        say(
            f"note: {more} of the {len(ids)} prompts of {part.prompt_set} have more than {wanted} pictures: the first {wanted} are scored"
        )
    return found


class Unfit(NamedTuple):
    """Why a picture is not scored."""

    kind: str
    """Of `UNFIT`."""
    size: str
    """Of the picture, where that is why; empty otherwise."""


def _unfit(paths: Sequence[Path]) -> dict[Path, Unfit]:
    """Those of a prompt set's pictures that are missing, or by their headers cannot be scored. One that has no header is left to `Given.read`."""
    found: dict[Path, Unfit] = {}
    sized: dict[Path, tuple[int, int]] = {}
    for path in paths:
        if not os.path.lexists(path):
            found[path] = Unfit("missing", "")
            continue
        try:
            with _without_limit(), Image.open(path) as picture:
                size, deep = picture.size, _is_deep(picture)
        except DAMAGE:
            continue
        if kind := _kind(size, deep):
            found[path] = Unfit(kind, "" if kind.startswith("of 16") else _pixels(size))
        else:
            sized[path] = size
    usual = Counter(sized.values()).most_common(1)[0][0] if sized else (0, 0)
    than_most = {
        path: Unfit("of another size than most", f"{_pixels(size)}, not {_pixels(usual)}")
        for path, size in sized.items()
        if size != usual
    }
    return found | than_most


def _kind(size: tuple[int, int], deep: bool) -> str:
    """For which of `UNFIT` a picture is not scored, looked at by itself; empty where it is."""
    if size[0] * size[1] > LARGEST:
        return "too large"
    if min(size) < SMALLEST:
        return "too small"
    return "of 16 bits a channel or more" if deep else ""


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _listed(unfit: Mapping[Path, Unfit], folder: Path) -> str:
    """Unfit pictures by what is wrong with them, the first `NAMED` of each."""
    parts = []
    for kind, to_know in UNFIT.items():
        of_kind = [(path.relative_to(folder), why.size) for path, why in unfit.items() if why.kind == kind]
        named = [f"{path} of {size}" if size else f"{path}" for path, size in of_kind[:NAMED]]
        more = f" and {len(of_kind) - NAMED} more" if len(of_kind) > NAMED else ""
        if named:
            parts.append(f"{kind}, {to_know}: {', '.join(named)}{more}")
    return "; ".join(parts)


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow's own limit lifted, while nothing but a header is read: ours is lower, and says the file."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _is_deep(picture: Image.Image) -> bool:
    """Whether a channel has more than 8 bits; Pillow cuts a colour picture of 16 to 8 while it decodes, and the file's own mode says so."""
    tiles = getattr(picture, "tile", [])
    return (
        picture.mode in ("I", "F")
        or picture.mode.startswith("I;16")
        or any(";16" in str(t[3]) for t in tiles)
    )
