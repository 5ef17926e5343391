"""`python -m train.miniature all`: rebuilds what the miniature ships, stage by stage, into results/miniature.

A stage whose record is there is not repeated, so a stopped rebuild goes on where it was; `--again` starts over. What ships in
evals/miniature/weights is only touched where `--out` says so: to ship another, copy the folders of `SHIPPED` and the record there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from evals.files import write_text
from prompts.lock import locked

STAGES = ("autoencoder", "denoiser", "blip", "imagereward", "judge")
NEEDS = {"denoiser": ("autoencoder",), "imagereward": ("denoiser", "blip"), "judge": ("denoiser",)}
SHIPPED = ("pipeline", "imagereward", "judge")
RECORD = "record.json"
BUILT = Path("results/miniature")
FOLDERS = {"denoiser": "pipeline"}
"""Where a stage's models lie, if not in a folder of its name."""


def sha256_of(folder: Path) -> dict[str, str]:
    """Digest of every weight file that ships."""
    files = sorted(f for part in SHIPPED for f in (folder / part).rglob("*.safetensors"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def build(stage: str, folder: Path) -> dict[str, Any]:
    """Run one stage. Returns its record."""
    from train.miniature import preference, pretrain

    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "autoencoder": lambda: pretrain.train_vae(folder / "autoencoder"),
        "denoiser": lambda: pretrain.train_denoiser(folder / "pipeline", folder / "autoencoder"),
        "blip": lambda: preference.train_blip(folder),
        "imagereward": lambda: preference.train_imagereward(folder),
        "judge": lambda: preference.train_judge(folder),
    }
    return makers[stage]()


def read_record(folder: Path) -> dict[str, Any]:
    """What is recorded so far.

    Raises:
        ValueError: naming the record, where it is none.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {"command": "make miniature", **record, "stages": {**record.get("stages", {})}}
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is no record of this program ({error}): delete it, and all is made anew"
        ) from None


@contextmanager
def changed_record(folder: Path) -> Iterator[dict[str, Any]]:
    """The record, to be changed; written with the digests of the weights when the block ends. One process at a time.

    Reward model and judge may be made side by side.
    """
    with locked(folder / ".record.lock"):
        record = read_record(folder)
        yield record
        stages = record["stages"]
        record["stages"] = {stage: stages[stage] for stage in STAGES if stage in stages}
        record["sha256"] = sha256_of(folder)
        write_text(json.dumps(record, indent=1) + "\n", folder / RECORD)


def is_made(folder: Path, stage: str) -> bool:
    """Whether a stage's models and their record are there."""
    return stage in read_record(folder)["stages"] and (folder / FOLDERS.get(stage, stage)).is_dir()


def with_dependents(stages: Sequence[str]) -> list[str]:
    """The stages, and those made of what they make."""
    wanted: list[str] = []
    for stage in STAGES:  # in order: what a stage needs comes before it
        if stage in stages or any(needed in wanted for needed in NEEDS.get(stage, ())):
            wanted.append(stage)
    return wanted


def record_stage(folder: Path, stage: str, make: Callable[[], dict[str, Any]]) -> None:
    """Run a stage unless its record is there, and add the record."""
    if is_made(folder, stage):
        click.echo(f"{stage}: already made, see {folder / RECORD}")
        return
    made = make()
    made |= {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    with changed_record(folder) as record:
        record["stages"][stage] = made


@click.command()
@click.argument("stage", type=click.Choice(["all", *STAGES]))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=BUILT,
    show_default=True,
    help="Folder of the models and their record.",
)
@click.option("--again", is_flag=True, help="Make the stage anew; those made of it are forgotten.")
def main(stage: str, out: Path, again: bool) -> None:
    """Make one stage of the miniature, or all, in their order. About three hours on two CPU cores."""
    wanted = STAGES if stage == "all" else (stage,)
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_missing(wanted, out)
        if again:
            forget(wanted, out)
    except (ValueError, OSError) as mistake:
        click.echo(f"error: {mistake}", err=True)
        sys.exit(2)
    for name in wanted:
        record_stage(out, name, partial(build, name, out))


def refuse_missing(wanted: Sequence[str], out: Path) -> None:
    """Refuse stages whose needs are not there.

    Raises:
        ValueError: naming the first.
    """
    for name in wanted:
        for needed in NEEDS.get(name, ()):
            if needed not in wanted and not is_made(out, needed):
                raise ValueError(
                    f"{out} has no {needed}, which {name} needs: "
                    f"run `python -m train.miniature {needed} --out {out}` first, or `all`"
                )


def forget(stages: Sequence[str], out: Path) -> None:
    """Take stages and what is made of them out of the record, so that they are made anew."""
    with changed_record(out) as record:
        for name in with_dependents(stages):
            record["stages"].pop(name, None)


if __name__ == "__main__":
    main(prog_name="python -m train.miniature")
