"""DiffusionDB-2M, Wang et al. 2022, arXiv 2210.14896: prompts of real users of Stable Diffusion, the paper's for human preference (section 4.1).

    diffusiondb-train, diffusiondb-test                      each text once; 2,000 are kept for the test
    diffusiondb-train-released, diffusiondb-test-released    the split of the paper's released code

The default: a text comes once however it is written (`prompts.normalised`), the first row stays. Left out are texts without a letter or digit, rows
whose `prompt_nsfw` is `NSFW` or more, and whatever the evaluation sets in `KEPT_OUT` ask, of which ImageReward's were drawn from this
table. `prompt_nsfw` is the larger of Detoxify's probabilities of "toxic" and "sexually explicit", and DiffusionDB leaves the threshold to
its user; one half is where the classifier takes either to be more likely than not. A classifier lets some through: these are unmoderated
texts, names of living people among them. The test has the 2,000 texts whose hash is lowest, so that it depends on the texts alone.

The released code shuffles all 2,000,000 rows with `random.seed(1928)` and keeps the last 2,000, as they are: what is asked in its test may be in its
training set, and nothing is filtered (pinterest/atg-research at 4cd0d60, joint-rl-diffusion/train.py).

A split is made once: both of its parts are written as Arrow files into the cache, which `datasets` maps into memory. So a prompt is at hand by its number,
at no cost in memory, for any number of processes. On a table of this size that took 45 seconds and 1 GB of memory, and the files of both
splits 0.4 GB of disk. For the default split the files of `KEPT_OUT` are fetched too.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import nsmallest
from pathlib import Path
from typing import Any

from prompts import LazyPrompts, Prompt, load, normalised
from prompts.fetched import FOLDER, File, Missing, cache_folder, made_once

REVISION = "fb620fbe49fa4420e0734bd9c0df11f51176b61f"
SOURCE = f"poloclub/diffusiondb on the Hugging Face hub at {REVISION}, metadata.parquet"
LICENCE = "CC0-1.0"

FILE = File(
    f"https://huggingface.co/datasets/poloclub/diffusiondb/resolve/{REVISION}/metadata.parquet",
    {"diffusiondb/metadata.parquet": "eecd341187bc91c07f5994ad0660d40228ea025616fd57a509bef8323677c68f"},
)
NSFW = 0.5
TEST = 2_000
"""Prompts kept for the test (paper, section 4.1; released code: `val_num`)."""
RELEASED_SEED = 1928
ROWS_AT_ONCE = 10_000
"""In a record batch of the Arrow files."""
KEPT_OUT = (
    *("composition-seen", "composition-unseen", "occupations", "person-objects", "parti", "geneval", "geneval-unseen"),
    *(f"t2i-compbench-{name}" for name in ("color", "shape", "texture", "spatial", "3d-spatial")),
    *(f"t2i-compbench-{name}" for name in ("numeracy", "non-spatial", "complex")),
    *("imagereward-test", "imagereward-bench"),
)  # fmt: skip
"""Evaluation sets whose texts are in neither part of the default split."""

Split = Callable[[Any], tuple[list[int], list[int]]]
"""An Arrow table with `prompt` and `prompt_nsfw`, to the numbers of its rows for training and for the test."""


def key(text: str) -> bytes:
    """What stands for a text however it is written: 16 bytes of a hash, which no two of some millions share by chance."""
    return hashlib.sha256(normalised(text).encode()).digest()[:16]


def split_unique(
    texts: Iterable[str | None], scores: Iterable[float | None], kept_out: Iterable[bytes]
) -> tuple[list[int], list[int]]:
    """Rows of the default split: each text once, none that is unsafe or kept out.

    Args:
        texts: of all rows.
        scores: their `prompt_nsfw`; None, unknown, counts as unsafe.
        kept_out: keys of the texts to leave out.
    """
    rows: dict[bytes, int] = {}
    for row, (text, score) in enumerate(zip(texts, scores, strict=True)):
        if score is not None and score < NSFW:
            rows.setdefault(key(text or ""), row)
    for unwanted in (key(""), *kept_out):
        rows.pop(unwanted, None)
    test = [rows.pop(lowest) for lowest in nsmallest(TEST, rows)]
    return list(rows.values()), test


def split_released(count: int) -> tuple[list[int], list[int]]:
    """Rows of the released code's split: `random.seed(1928); random.shuffle(rows)`, of which the last are the test."""
    order = list(range(count))
    random.Random(RELEASED_SEED).shuffle(order)  # a generator of its own draws what the global one would
    return order[:-TEST], order[-TEST:]


def _unique(part: str) -> LazyPrompts:
    kept_out = sorted({key(text) for text in _texts_kept_out(part)})
    without = hashlib.sha256(b"".join(kept_out)).hexdigest()
    return _open(
        part,
        f"each text once by its words in NFKC_Casefold with their marks, prompt_nsfw < {NSFW}, {TEST} for the test, without {without}",
        lambda table: split_unique(_values(table["prompt"]), _values(table["prompt_nsfw"]), kept_out),
    )


def _texts_kept_out(part: str) -> set[str]:
    """What evaluation sets ask.

    Raises:
        ValueError: for files that cannot be had: why they are needed, and all of them at once.
    """
    texts: set[str] = set()
    missing: list[Missing] = []
    for name in KEPT_OUT:
        try:
            texts |= {prompt.text for prompt in load(name)}
        except Missing as one:
            missing.append(one)
    if missing:
        needs = "none of them"
        try:
            FILE.path()
        except Missing as table:
            missing.append(table)
            needs = "only the last of them"
        files = ", ".join(f"{next(iter(one.file.kept))} ({one.file.url})" for one in missing)
        raise ValueError(
            f"diffusiondb-{part} leaves out the prompts that others are evaluated on, and {len(missing)} files are not to be had: put {files} "
            f"below a folder that {FOLDER} names; diffusiondb-{part}-released needs {needs}; of the first: {missing[0]}"
        ) from missing[0]
    return texts


def _released(part: str) -> LazyPrompts:
    return _open(
        part,
        f"released, seed {RELEASED_SEED}, {TEST} for the test",
        lambda table: split_released(len(table)),
    )


def _open(part: str, recipe: str, split: Split) -> LazyPrompts:
    """One part of a split, which is made where it is not there yet.

    Raises:
        ValueError: the table cannot be had, the disk refuses, or what was made is damaged.
    """
    from datasets import Dataset

    (sha256,) = FILE.kept.values()
    recipe = f"diffusiondb 1 {sha256} {recipe}"
    name = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = made_once(cache_folder() / "diffusiondb" / name, partial(_write, split))
    path = folder / f"{part}.arrow"
    try:
        rows = Dataset.from_file(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: delete {folder}, and it is made again") from error
    return LazyPrompts(partial(_prompt, rows), len(rows), f"{recipe} {part}")


def _prompt(rows: Any, index: int) -> Prompt:
    row = rows[index]
    return Prompt(f"{row['row']:07d}", row["text"] or "")  # a row may have no text at all


def _write(split: Split, folder: Path) -> None:
    """Both parts of a split, as Arrow files in a new folder: each text, and the number of its row in the table."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    source = FILE.path()
    print(f"preparing the prompts of {source}, once", file=sys.stderr)
    table = pa.Table.from_batches(ParquetFile(source).iter_batches(columns=["prompt", "prompt_nsfw"]))
    folder.mkdir()
    for part, rows in zip(("train", "test"), split(table), strict=True):
        made = pa.table({"row": pa.array(rows, pa.int32()), "text": table["prompt"].take(pa.array(rows))})
        with pa.ipc.new_stream(folder / f"{part}.arrow", made.schema) as stream:
            stream.write_table(made, max_chunksize=ROWS_AT_ONCE)


def _values(column: Any) -> Iterator[Any]:
    """An Arrow column in Python, a piece at a time."""
    for chunk in column.chunks:
        yield from chunk.to_pylist()


SETS: dict[str, Callable[[], Sequence[Prompt]]] = {
    "diffusiondb-train": partial(_unique, "train"),
    "diffusiondb-test": partial(_unique, "test"),
    "diffusiondb-train-released": partial(_released, "train"),
    "diffusiondb-test-released": partial(_released, "test"),
}
