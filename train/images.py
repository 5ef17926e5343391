"""Pictures with captions on disk, one pair by its number: a folder, or WebDataset shards. What img2dataset leaves is either.

A folder holds pictures (.jpg, .jpeg, .png, .webp; in folders below, too) with their captions beside them, `NAME.txt` or the field `caption` of `NAME.json`; or a
`metadata.jsonl` as `datasets` reads it for its imagefolder, a line `{"file_name": ..., "text": ...}` for each.

Shards are tar archives, not compressed, in which the members of a pair follow each other and share their name up to the first dot: `KEY.jpg` and `KEY.txt` (or `KEY.json`). They
are given as a folder of them, one of them, or a pattern such as `laion/{00000..01199}.tar`. Where the members lie is found out once, and kept in the assets of the hub's cache
(HF_ASSETS_CACHE), so that a pair is read from its place without what lies before it. No other member is ever opened.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import sys
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from evals.files import write_bytes
from evals.rgb import as_rgb
from prompts.lock import locked
from train.launch import speaks

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")
UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What reading a pair raises where that pair is damaged."""
INDEX_FORMAT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation (Exif 2.3, tag 0x0112); 1 is upright."""


class Pairs(Protocol):
    """Pictures with captions, by number."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> tuple[bytes, str]:
        """A picture's file and its caption. Raises one of UNREADABLE where it is damaged."""

    def where(self, number: int) -> str:
        """What a message calls it."""


def open_pairs(source: str, max_left_out: float) -> Pairs:
    """Pictures with captions.

    Args:
        source: a folder, a shard, or a pattern of shards.
        max_left_out: share of pictures that may be without a caption.

    Raises:
        ValueError: in one sentence, where nothing is there, a shard is cut off, or too many pictures have no caption.
    """
    found: FolderPairs | ShardPairs
    if source.endswith(".tar"):
        found = ShardPairs(_shards(source))
    elif shards := sorted(Path(source).glob("*.tar")):
        found = ShardPairs(shards)
    else:
        found = FolderPairs(Path(source))
    _refuse_uncaptioned(source, len(found), found.uncaptioned, max_left_out)
    return found


def _refuse_uncaptioned(source: str, pairs: int, uncaptioned: int, max_left_out: float) -> None:
    pictures = pairs + uncaptioned
    if not pictures:
        raise ValueError(
            f"pretraining.source: {source} holds no pictures ({', '.join(ENDINGS)}), no shards of them (.tar), and no latents.safetensors"
        )
    if uncaptioned > max_left_out * pictures or not pairs:
        raise ValueError(
            f"pretraining.source: {uncaptioned} of the {pictures} pictures of {source} have no caption, "
            f"and pretraining.max_unreadable allows a share of {max_left_out:g}"
        )
    if uncaptioned and speaks():
        print(
            f"note: {uncaptioned} of the {pictures} pictures of {source} have no caption and are left out",
            file=sys.stderr,
        )


def caption_of(content: bytes | str, is_json: bool) -> str:
    """The caption in a text file, or in a JSON file as img2dataset writes it.

    Raises:
        ValueError: where there is none.
    """
    text: Any = content.decode("utf-8") if isinstance(content, bytes) else content
    if is_json:
        record = json.loads(text)
        text = record.get("caption") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError("it has no caption")
    return text.strip()


def picture_of(content: bytes, height: int, width: int) -> Tensor:
    """A picture's file as float32 RGB in [0, 1], [3, H, W]: what is transparent over white, its short side resized, its middle cut out.

    Raises:
        UNREADABLE: where it is damaged, or no JPEG, PNG or WebP.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()
        turn = _TURNS.get(_orientation(image) or 1)
        upright, _ = as_rgb(image if turn is None else image.transpose(turn))
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255).permute(2, 0, 1)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF's word on which side is up, 1 to 8; None, or another number, where it says nothing that has a meaning.

    `ImageOps.exif_transpose` writes all of the EXIF anew, which fails where any of it is damaged.
    """
    value = image.getexif().get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) else None


# ------------------------------------------------------------------------------------------------------------------ folder


class FolderPairs:
    """Pictures in a folder. What is kept in memory is their names."""

    def __init__(self, folder: Path) -> None:
        """List them.

        Raises:
            ValueError: where there is no such folder, or its metadata.jsonl is damaged.
        """
        if folder.is_file():
            raise ValueError(
                f"pretraining.source: {folder} is a file, and no shard that can be read: give shards that end in .tar, not compressed, or a folder"
            )
        if not folder.is_dir():
            raise ValueError(
                f"pretraining.source: there is no folder {folder}: give one of pictures with captions, of shards (.tar) or of latents, "
                "a pattern of shards, or miniature"
            )
        self.folder = folder
        metadata = folder / "metadata.jsonl"
        listed = _listed(metadata) if metadata.is_file() else _beside(folder)
        self._pairs: list[tuple[str, str, str]] = []
        """Name of the picture's file, and its caption, or the name of its file: which, says the last."""
        self.uncaptioned = 0
        for name, caption, kind in listed:
            if caption:
                self._pairs.append((name, caption, kind))
            else:
                self.uncaptioned += 1

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, number: int) -> tuple[bytes, str]:
        """See `Pairs`."""
        name, caption, kind = self._pairs[number]
        text = caption if kind == "text" else (self.folder / caption).read_bytes()
        return (self.folder / name).read_bytes(), caption_of(text, kind == "json")

    def where(self, number: int) -> str:
        """See `Pairs`."""
        return str(self.folder / self._pairs[number][0])


def _beside(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Pictures with the names of the files of their captions, in an order of their own that is the same everywhere."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        below, there = Path(place).relative_to(folder), set(files)
        for name in sorted(files):
            stem, ending = os.path.splitext(name)
            if ending.lower() in ENDINGS and not name.startswith("."):
                kind = next((kind for kind in ("txt", "json") if f"{stem}.{kind}" in there), "")
                yield str(below / name), str(below / f"{stem}.{kind}") if kind else "", kind


def _listed(metadata: Path) -> Iterator[tuple[str, str, str]]:
    """Pictures and captions that a metadata.jsonl names.

    Raises:
        ValueError: naming the line that is damaged.
    """
    with metadata.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
                raise ValueError(f"{metadata}:{number}: not a JSON object with a file_name")
            caption = record.get("text", record.get("caption"))
            yield record["file_name"], caption.strip() if isinstance(caption, str) else "", "text"


# ------------------------------------------------------------------------------------------------------------------ shards


class ShardPairs:
    """Pictures in tar archives. What is kept in memory is where each lies, 40 bytes."""

    def __init__(self, shards: Sequence[Path]) -> None:
        """Find out where the pairs lie, or learn it from an earlier run.

        Processes start at different shards, so that together they look through each once.

        Raises:
            ValueError: naming a shard that is cut off.
        """
        self._shards = list(shards)
        found: dict[int, dict[str, Tensor]] = {}
        first = int(os.environ.get("RANK", "0")) * len(shards) // int(os.environ.get("WORLD_SIZE", "1"))
        numbers = [*range(first, len(shards)), *range(first)]
        for number in tqdm(numbers, desc="looking through shards", file=sys.stderr, disable=not speaks()):
            found[number] = _index(shards[number])
        self._pairs = [found[number]["pairs"] for number in range(len(shards))]
        self._ends = list(accumulate(len(pairs) for pairs in self._pairs))
        self.uncaptioned = sum(int(index["uncaptioned"]) for index in found.values())

    def __len__(self) -> int:
        return self._ends[-1]

    def _place(self, number: int) -> tuple[Path, list[int]]:
        shard = bisect_right(self._ends, number)
        row = number - (self._ends[shard - 1] if shard else 0)
        return self._shards[shard], self._pairs[shard][row].tolist()

    def read(self, number: int) -> tuple[bytes, str]:
        """See `Pairs`."""
        shard, (start, size, text_start, text_size, is_json) = self._place(number)
        with shard.open("rb") as file:
            file.seek(start)
            picture = file.read(size)
            file.seek(text_start)
            return picture, caption_of(file.read(text_size), bool(is_json))

    def where(self, number: int) -> str:
        """See `Pairs`."""
        shard, (start, *_) = self._place(number)
        return f"byte {start} of {shard}"


def _shards(pattern: str) -> list[Path]:
    """The shards that a pattern names.

    Raises:
        ValueError: where one is missing.
    """
    shards = [Path(name) for name in expand(pattern)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing or not shards:
        many = f", and {len(missing) - 1} more of the {len(shards)} of {pattern}" if len(missing) > 1 else ""
        raise ValueError(f"pretraining.source: there is no {missing[0] if missing else pattern}{many}")
    return shards


def is_here(source: str) -> bool:
    """Whether a folder, a shard, or all shards of a pattern are on this machine."""
    names = expand(source)
    return bool(names) and all(Path(name).exists() for name in names)


def expand(pattern: str) -> list[str]:
    """`a/{008..010}.tar` as a/008.tar, a/009.tar and a/010.tar."""
    numbers = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if numbers is None:
        return [pattern]
    first, last = numbers.groups()
    before, after = pattern[: numbers.start()], pattern[numbers.end() :]
    return [
        name
        for number in range(int(first), int(last) + 1)
        for name in expand(f"{before}{number:0{len(first)}d}{after}")
    ]


def _index(shard: Path) -> dict[str, Tensor]:
    """`index_of` a shard, from the cache where it is there; of the processes of a host one looks while the others wait."""
    state, place = shard.stat(), shard.resolve()
    key = json.dumps([INDEX_FORMAT, str(place), state.st_size, state.st_mtime_ns])
    path = _cache() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    if not path.is_file():
        with locked(path.with_suffix(".lock")):
            if not path.is_file():
                pairs, uncaptioned = index_of(shard)
                write_bytes(save({"pairs": pairs, "uncaptioned": torch.tensor(uncaptioned)}), path)
    return load_file(path)


def _cache() -> Path:
    from huggingface_hub import cached_assets_path

    return cached_assets_path("t2i", "pretraining", "shards")


def index_of(shard: Path) -> tuple[Tensor, int]:
    """Where the pairs of a shard lie.

    Returns:
        int64 [N, 5]: first byte and size of the picture, those of the caption, and whether that is in JSON; and the number of pictures without a caption.

    Raises:
        ValueError: where it is cut off, compressed or no tar archive.
    """
    rows: list[tuple[int, ...]] = []
    uncaptioned = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for members in _samples(archive):
                picture = next((members[ending] for ending in ENDINGS if ending in members), None)
                caption = members.get(".txt", members.get(".json"))
                if picture is not None and caption is not None:
                    rows.append((*picture, *caption, int(".txt" not in members)))
                uncaptioned += picture is not None and caption is None
            _refuse_cut_off(archive)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"pretraining.source: {shard} was cut off, or is no tar archive ({error})"
        ) from error
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 5), uncaptioned


def _samples(archive: tarfile.TarFile) -> Iterator[dict[str, tuple[int, int]]]:
    """Members that follow each other and share their key, as first byte and size by ending."""
    key, members = None, dict[str, tuple[int, int]]()
    for member in archive:
        folder, _, name = member.name.rpartition("/")
        stem, dot, ending = name.partition(".")
        if not stem or not member.isreg() or member.issparse():  # hidden, or no plain file
            continue
        if (folder, stem) != key and members:
            yield members
            members = {}
        key = (folder, stem)
        members[f"{dot}{ending.lower()}"] = (member.offset_data, member.size)
    if members:
        yield members


def _refuse_cut_off(archive: tarfile.TarFile) -> None:
    """An archive ends with empty blocks; one that was cut off between two members has none, which `tarfile` takes for an end.

    Raises:
        tarfile.ReadError: where it has none.
    """
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it has no end")
