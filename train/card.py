"""run.json: what was run, with which versions, at what cost. Written last, so that it means finished."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from evals.checkpoints import ROOT
from evals.scorers import weights_of
from evals.weights import sha256_of
from prompts import Prompt, digest
from train.config import Experiment, as_json
from train.state import Progress

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors")


def card(
    name: str,
    experiment: Experiment,
    model: str,
    seed: int,
    progress: Progress,
    prompt_sets: Mapping[str, Sequence[Prompt]],
    scorers: Mapping[str, Any],
    processes: int,
    device: torch.device,
    scheduler: Any,
) -> dict[str, Any]:
    """The record of a finished run."""
    commit, dirty = git_commit()
    return {
        "name": name,
        "experiment": as_json(experiment),
        "model": model,
        "seed": seed,
        "commit": commit,
        "dirty": dirty,
        "versions": versions(),
        "hardware": hardware(device, processes),
        "prompt_sets": {set_name: digest(prompts) for set_name, prompts in prompt_sets.items()},
        "rewards": sorted({term.scorer for task in experiment.tasks for term in task.rewards}),
        "scorer_versions": {scorer_name: scorer.version for scorer_name, scorer in scorers.items()},
        "scorer_sources": {scorer_name: origin(scorer) for scorer_name, scorer in scorers.items()},
        "gates": progress.gates,
        "cost": {
            "images": progress.images,
            "denoiser_evaluations": progress.denoiser_evaluations,
            "seconds": round(progress.seconds, 3),
            "gpu_hours": round(progress.gpu_seconds / 3600, 6),
        },
        "base": experiment.base,
        "sampling": as_json(experiment)["sampling"],
        "scheduler": ddim_options(scheduler),
        "example": next((prompt.text for prompts in prompt_sets.values() for prompt in prompts), None),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def origin(scorer: Any) -> dict[str, Any]:
    """Where a scorer comes from: its own words, and the weights of others in it with revision, content and licence."""
    weights = [
        {
            "repository": w.repository,
            "revision": w.revision,
            "sha256": {path.name: sha256_of(path) for path in w.paths()},
            "licence": w.licence,
            "free": w.free,
        }
        for w in weights_of(scorer)
    ]
    return {"source": scorer.source, "weights": weights}


def ddim_options(scheduler: Any) -> dict[str, bool]:
    """What `DDIMScheduler.from_config` must be told beside a scheduler's config, to draw as `evals.diffusion.Schedule.of` does.

    It fills what a config of another class lacks with defaults that clip latents.
    """
    return {name: bool(scheduler.config.get(name, False)) for name in ("clip_sample", "set_alpha_to_one")}


def git_commit() -> tuple[str | None, bool | None]:
    """Commit of this repository, and whether tracked files differ from it; None outside of git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit, bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result can depend on."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:  # an optional one
            continue
    return found


def hardware(device: torch.device, processes: int) -> dict[str, Any]:
    """What it ran on."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device)
        if on_gpu
        else platform.processor() or platform.machine(),
        "processes": processes,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
