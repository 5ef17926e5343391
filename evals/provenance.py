"""What score rows were made of: kept per unit while a suite is scored (see `evals.harness`), and told beside the rows, in `X.json` beside `X.csv`.

    suite               as the rows have it
    sampling, seed      how the pictures were drawn; null for somebody's pictures
    model               experiment, model, seed; weights: a hash, base: as its run says it (absent for somebody's pictures);
                        pictures: the folder of those that were given, as it was typed
    scorers             name: {version, source}
    prompt_sets         name: what was counted on it
        prompts             hash of the prompts, as the rows have it
        prompts_count, images_per_prompt, pictures
        truncated           model: prompts that the drawing model does not read to their end, null where that is not known;
                            scorers: {name: prompts that it does not read to their end, null where it does not say}
        size                width and height of the pictures, null where none could be decoded
        failed_decodes      pictures that could not be decoded: they have no hash, and no scores
        unfit               {why: pictures of somebody's that were not read, as `evals.pictures.UNFIT` has it}: they have none either
        black               pictures of which every pixel is 0, as a safety checker leaves them; they are scored like others
        converted           {what was done to make it RGB: pictures}
        duplicates          within_prompts: pictures that are, pixel for pixel, an earlier one of their prompt; across_prompts: an earlier one of another prompt
        not_applicable      {scorer: pictures without a score, those that were not read or decoded among them}
    made_of             hash of everything that the rows depend on: pictures, prompts, versions
    rows_sha256         of the CSV file
    machine             what may differ between two makings of the same rows
        devices, libraries  {library: versions}; more than one where several machines took part
        seconds             total, of all processes together; drawing: in the model; saving: waiting for pictures to be written, which on an accelerator goes on while others are drawn;
                            reading: of pictures; scorers: {name: its calls}
        bare_share          drawing and scorers over total: the time that went into models

All but `machine` is the same, byte for byte, for the same weights, suite and scorers.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evals.asides import beside
from evals.files import write_bytes
from evals.pictures import Read
from evals.suites import Suite

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "numpy", "pillow")


class Seen(NamedTuple):
    """A picture file as it was read."""

    digest: str | None
    """Of its pixels, None where it could not be decoded, or was not read."""
    size: tuple[int, int] | None
    """Width and height."""
    black: bool
    made: str
    """See `evals.pictures.Read`."""
    stat: tuple[int, int] | None
    """Bytes and time of the file: while they stay, so do its pixels."""
    unfit: str = ""
    """Why it was not read, of `evals.pictures.UNFIT`; empty where it was."""

    @classmethod
    def of(cls, picture: Read | None, at: tuple[int, int] | None, unfit: str = "") -> Seen:
        """What is kept of a picture."""
        if picture is None:
            return cls(None, None, False, "", at, unfit)
        return cls(picture.digest, picture.size, picture.is_black, picture.made, at)

    @property
    def remark(self) -> str:
        """What a user should know of it, empty where it is like others."""
        if self.digest is None:
            return f"{f'is {self.unfit}' if self.unfit else 'cannot be decoded'}, so it has no scores"
        return "is all black, as a safety checker leaves it" if self.black else self.made


class Score(NamedTuple):
    """A scorer's answers for a unit."""

    version: str
    values: list[float] | None
    """One for each picture; None where its features are kept, beside the record."""


@dataclass
class Record:
    """What is kept of a unit."""

    suite: str
    prompts: str
    pictures: list[Seen]
    base: list[Seen] | None
    """The base's, where a scorer compares with them."""
    scores: dict[str, Score] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)

    def digests(self) -> list[str | None]:
        """Hashes of its pictures."""
        return [one.digest for one in self.pictures]

    def base_digests(self) -> list[str | None] | None:
        """Hashes of the base's."""
        return None if self.base is None else [one.digest for one in self.base]

    def unfit(self) -> list[list[str]]:
        """Why pictures were not read: of each, where there is one."""
        found = [one.unfit for one in self.pictures]
        return [found] if any(found) else []

    def shows_the_same(self, other: Record) -> bool:
        """Whether the pictures of another record are these."""
        return self.digests() == other.digests()


def stat(path: str) -> tuple[int, int] | None:
    """Bytes and time of a file, None where there is none, or a link that leads nowhere."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def write(record: Record, path: Path) -> None:
    """Keep a record. JSON has no NaN: it is null."""
    scores = {
        name: [made, None if values is None else [None if value != value else value for value in values]]
        for name, (made, values) in record.scores.items()
    }
    kept = {**vars(record), "scores": scores}
    write_bytes(json.dumps(kept).encode(), path, durable=False)  # what a power cut takes of it is done again


def read(path: Path) -> Record | None:
    """A kept record; None where there is none, or the file is none: its unit is then done again."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**kept)
        record.pictures = [_seen(one) for one in kept["pictures"]]
        record.base = None if kept["base"] is None else [_seen(one) for one in kept["base"]]
        record.scores = {
            name: Score(
                made, None if values is None else [float("nan") if v is None else float(v) for v in values]
            )
            for name, (made, values) in kept["scores"].items()
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return record


def _seen(kept: Sequence[Any]) -> Seen:
    digest, size, black, made, at, *unfit = kept  # records once did not say what was unfit
    return Seen(digest, size and (size[0], size[1]), black, made, at and (at[0], at[1]), *unfit)


# ------------------------------------------------------------------------------------------------------- beside the rows


def refuse_foreign(out: Path) -> None:
    """Refuse to write over a file that is none of ours.

    Raises:
        ValueError: naming it.
    """
    path = beside(out)
    if path.exists() and "made_of" not in _told(path):
        raise ValueError(
            f"{path} is there, where it would be told what {out.name} was made of, and is something else: choose another --out"
        )


def is_of(out: Path, key: str) -> bool:
    """Whether a CSV file is what was made of this."""
    told = _told(beside(out))
    return told.get("made_of") == key and out.is_file() and told.get("rows_sha256") == sha256(out)


def _told(path: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def drawing(suite: Suite, drawn: bool) -> dict[str, object]:
    """How a suite's pictures are drawn; null where they were given."""
    return {"sampling": asdict(suite.sampling) if drawn else None, "seed": suite.seed if drawn else None}


def counts(pictures: Sequence[tuple[str, Seen]]) -> dict[str, object]:
    """What is counted on the pictures of a prompt set, each with its prompt's id."""
    seen = [one for _, one in pictures]
    converted = Counter(one.made for one in seen if one.made)
    return {
        "pictures": len(seen),
        "size": next((list(one.size) for one in seen if one.size), None),
        "failed_decodes": sum(one.digest is None and not one.unfit for one in seen),
        "unfit": dict(sorted(Counter(one.unfit for one in seen if one.unfit).items())),
        "black": sum(one.black for one in seen),
        "converted": dict(sorted(converted.items())),
        "duplicates": duplicates([(prompt, one.digest) for prompt, one in pictures if one.digest]),
    }


def duplicates(digests: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Pictures that are an earlier one of their own prompt, or else of another, from pairs of prompt id and hash."""
    own: set[tuple[str, str]] = set()
    any_prompt: set[str] = set()
    within = across = 0
    for prompt, digest in digests:
        if (prompt, digest) in own:
            within += 1
        elif digest in any_prompt:
            across += 1
        own.add((prompt, digest))
        any_prompt.add(digest)
    return {"within_prompts": within, "across_prompts": across}


def machine(device: str) -> dict[str, str]:
    """What a unit is scored on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return {"device": f"{device} ({name})", **_libraries()}


@cache
def _libraries() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Seconds of both."""
    return {what: one.get(what, 0.0) + other.get(what, 0.0) for what in sorted({*one, *other})}


def machines(records: Sequence[Record], since: Mapping[str, float]) -> dict[str, object]:
    """What differs from machine to machine: devices, libraries, seconds, those of `since` among them."""
    spent = {"total": 0.0, "drawing": 0.0, "saving": 0.0, "reading": 0.0}
    for seconds in (since, *(record.seconds for record in records)):
        spent = added(spent, seconds)
    called = {what.removeprefix(SCORER): s for what, s in spent.items() if what.startswith(SCORER)}
    bare = spent["drawing"] + sum(called.values())
    kinds = [record.machine for record in records]
    return {
        "devices": sorted({kind["device"] for kind in kinds}),
        "libraries": {name: sorted({kind[name] for kind in kinds}) for name in LIBRARIES},
        "seconds": {
            **{what: round(spent[what], 3) for what in ("total", "drawing", "saving", "reading")},
            "scorers": {name: round(seconds, 3) for name, seconds in sorted(called.items())},
        },
        "bare_share": round(bare / spent["total"], 4),
    }


SCORER = "scorer "
"""What the clock calls the calls of a scorer, before its name."""
