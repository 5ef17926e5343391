"""Snapshots of a run: what it would hand over after so many iterations, kept to see where training should have ended.

    <run>/snapshots/000040/
        unet/                               the denoiser, averaged where the run averages, in diffusers layout
        pytorch_lora_weights.safetensors    in its place, where adapters are trained
        snapshot.json                       iteration, what it took, and how far the updates have gone

`python -m evals score RUN@40` opens one, `python -m evals curve RUN` all of them. What training leaves as it is (autoencoder, text
encoders, tokenizers, scheduler) stands once, in the run directory; so does what is handed over at the end, and the base is iteration 0.

A snapshot is written beside its place, synchronised and renamed: whatever interrupts this, those that are there are whole. A resumed
run first removes those of more iterations than it has done, and then makes the same ones again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from evals.checkpoints import SNAPSHOT_CARD, SNAPSHOTS, snapshot_folder
from evals.files import sync_folder, write_text
from train.config import Experiment
from train.policy import Policy
from train.state import Progress

_TEMPORARY = re.compile(r"\.\d{6,}\.tmp")


def is_due(experiment: Experiment, iteration: int) -> bool:
    """Whether a snapshot belongs to the state after that many iterations: every `snapshots_every`-th, but not the last, which the run hands over."""
    every = experiment.snapshots_every
    return every > 0 and 0 < iteration < experiment.iterations and iteration % every == 0


def is_there(out: Path, iteration: int) -> bool:
    """Whether a run has that snapshot, whole."""
    return (snapshot_folder(out, iteration) / SNAPSHOT_CARD).is_file()


def forget_after(out: Path, iteration: int) -> None:
    """Remove snapshots of more iterations than a resumed run has done (below 0, all), and what a kill has left of one.

    Raises:
        OSError: where the disk refuses.
    """
    folder = out / SNAPSHOTS
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        is_later = re.fullmatch(r"\d{6,}", path.name) is not None and int(path.name) > iteration
        if is_later:  # in one move, so that a kill leaves nothing that looks like one
            path = path.rename(folder / f".{path.name}.tmp")
        if is_later or _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path)


def write(policy: Policy, weights: Mapping[str, Tensor], progress: Progress, out: Path) -> None:
    """Write the snapshot of a run as it stands, whole or not at all. On the main process.

    Args:
        policy: under training.
        weights: `Policy.weights_to_hand_over`, which all processes must ask for.
        progress: where training stands.
        out: run directory.

    Raises:
        OSError: where the disk refuses; what was written is removed, and the snapshots before are untouched.
    """
    target = snapshot_folder(out, progress.iteration)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        policy.save_trained(temporary, weights)
        record = card(progress, out / "metrics.jsonl")
        write_text(json.dumps(record, indent=1) + "\n", temporary / SNAPSHOT_CARD)
        _sync(temporary)
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def card(progress: Progress, metrics: Path) -> dict[str, Any]:
    """What a snapshot says of itself: `cost` is that of a run's card, up to there."""
    return {
        "iteration": progress.iteration,
        "cost": {
            "images": progress.images,
            "denoiser_evaluations": progress.denoiser_evaluations,
            "seconds": round(progress.seconds, 3),
            "gpu_hours": round(progress.gpu_seconds / 3600, 6),
        },
        "kl_of_updates": kl_of_updates(metrics),
    }


def kl_of_updates(metrics: Path) -> dict[str, float]:
    """Sum over iterations, by task, of the mean KL (nats per denoising step) between the policy that drew a batch and the one that learns from it.

    The length of the way, not the distance from the base: that is `evals.divergence`. Nothing of a task whose method records no KL.

    Args:
        metrics: metrics.jsonl.
    """
    total: dict[str, float] = defaultdict(float)
    for line in metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "kl" in record:
            total[record["task"]] += record["kl"]
    return dict(total)


def _sync(folder: Path) -> None:
    """Make all files in a folder durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
