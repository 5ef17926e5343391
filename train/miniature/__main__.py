"""`python -m train.miniature all`: rebuilds what the miniature ships, stage by stage, into evals/miniature/weights.

A stage whose record is there is not repeated, so a stopped rebuild goes on where it was; `--again` starts over.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch

from evals.miniature import WEIGHTS
from evals.rows import write_text

STAGES = ("autoencoder", "denoiser", "imagereward", "judge")
NEEDS = {"denoiser": "autoencoder", "imagereward": "pipeline", "judge": "pipeline"}
SHIPPED = ("pipeline", "imagereward", "judge")
RECORD = "record.json"


def sha256_of(folder: Path) -> dict[str, str]:
    """Digest of every weight file that ships."""
    files = sorted(f for part in SHIPPED for f in (folder / part).rglob("*.safetensors"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def build(stage: str, folder: Path) -> dict[str, Any]:
    """Run one stage. Returns its record."""
    if stage in ("imagereward", "judge"):
        from train.miniature import preference

        return (preference.train_imagereward if stage == "imagereward" else preference.train_judge)(folder)
    from train.miniature.pretrain import train_denoiser, train_vae

    if stage == "autoencoder":
        return train_vae(folder / "autoencoder")
    return train_denoiser(folder / "pipeline", folder / "autoencoder")


def read_record(path: Path) -> dict[str, Any]:
    """What is recorded so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def record_stage(folder: Path, stage: str, make: Callable[[], dict[str, Any]]) -> None:
    """Run a stage unless its record is there, and add the record."""
    path = folder / RECORD
    if stage in read_record(path).get("stages", {}):
        click.echo(f"{stage}: already made, see {path}")
        return
    made = make()
    record = read_record(path)  # as it is now: reward model and judge may be made side by side
    made |= {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    record.setdefault("command", "make miniature")
    record.setdefault("stages", {})[stage] = made
    record["sha256"] = sha256_of(folder)
    write_text(json.dumps(record, indent=1) + "\n", path)


@click.command()
@click.argument("stage", type=click.Choice(["all", *STAGES]))
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS, help="Folder of the weights.")
@click.option("--again", is_flag=True, help="Forget the records: make the stage anew.")
def main(stage: str, out: Path, again: bool) -> None:
    """Make one stage of the miniature, or all: autoencoder, denoiser, imagereward, judge. About three hours on two CPU cores."""
    wanted = STAGES if stage == "all" else (stage,)
    if again and (out / RECORD).is_file():
        record = read_record(out / RECORD)
        record["stages"] = {name: made for name, made in record["stages"].items() if name not in wanted}
        write_text(json.dumps(record, indent=1) + "\n", out / RECORD)
    for name in wanted:
        needed = NEEDS.get(name)
        if needed and not (out / needed).is_dir():
            sys.exit(f"error: {out / needed} is missing, which {name} needs: make it first, or run `all`")
        record_stage(out, name, lambda name=name: build(name, out))  # type: ignore[misc]


if __name__ == "__main__":
    main(prog_name="python -m train.miniature")
