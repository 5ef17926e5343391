"""What an iteration is given: its prompts, its denoising steps, its pretraining pairs. Pure functions of (seed, iteration).

The iteration number is the whole cursor: a resumed run goes on with the prompts that the stopped one would have asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from evals.diffusion import derive_seed
from prompts import Prompt
from train.config import Pretraining, Task
from train.launch import speaks

MINIATURE_PAIRS = 2048  # at 48 an iteration, as in results/README.md, sixty iterations see each once or twice
ENCODE_BATCH = 64


def _generator(*parts: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))


@lru_cache(maxsize=8)
def _permutation(size: int, *parts: str | int) -> Tensor:
    return torch.randperm(size, generator=_generator(*parts))  # a tensor: of a million, 8 MB in every process


def positions(size: int, start: int, count: int, *parts: str | int) -> list[int]:
    """Items `start` .. `start + count` of endless passes over `size` things, each pass in an order of its own."""
    return [int(_permutation(size, *parts, at // size)[at % size]) for at in range(start, start + count)]


def prompts_of(task: Task, prompts: Sequence[Prompt], seed: int, iteration: int) -> list[Prompt]:
    """The P prompts of an iteration, the same plan whatever the number of processes: all prompts once before any twice."""
    count = task.prompts_per_iteration
    return [prompts[i] for i in positions(len(prompts), iteration * count, count, "prompts", seed, task.name)]


def image_indices(task: Task, iteration: int) -> list[int]:
    """Index of each of the B images of an iteration, never used twice in a run, so that a prompt's noise is new each time."""
    return list(range(iteration * task.batch, (iteration + 1) * task.batch))


def noise_seed(task: Task, seed: int) -> int:
    """Seed of a task's noise: apart from other tasks', and from an evaluation's with the same number."""
    return derive_seed("rollout", seed, task.name)


def draw_steps(steps: Sequence[int], count: int, seed: int, task: Task, iteration: int) -> list[int]:
    """The denoising steps to train on, in order of their updates: uniform without replacement (paper, App. A)."""
    order = torch.randperm(len(steps), generator=_generator("steps", seed, task.name, iteration))
    return [steps[i] for i in order[:count].tolist()]


class PretrainingSource(Protocol):
    """Where the pairs of Eq 9 come from."""

    def batch(self, iteration: int, size: int, rank: int, world: int) -> tuple[Tensor, list[str]]:
        """This process's share of an iteration's pairs: latents [size / world, C, H, W] float32, scaled, and captions."""


class CachedPairs:
    """Latents and captions held in memory."""

    def __init__(self, latents_NCHW: Tensor, captions_N: Sequence[str], seed: int) -> None:
        self.latents_NCHW = latents_NCHW
        self.captions_N = captions_N
        self.seed = seed

    def batch(self, iteration: int, size: int, rank: int, world: int) -> tuple[Tensor, list[str]]:
        """See `PretrainingSource`; every pair once before any twice."""
        chosen = positions(len(self.captions_N), iteration * size, size, "pretraining", self.seed)
        share = size // world
        mine = chosen[rank * share : (rank + 1) * share]
        return self.latents_NCHW[mine].float(), [self.captions_N[i] for i in mine]


def pretraining_source(pretraining: Pretraining, painter: Any, seed: int) -> PretrainingSource:
    """Open the pairs that an experiment names.

    Raises:
        ValueError: one sentence naming the file that is missing, damaged or does not fit the model.
    """
    if pretraining.source == "miniature":
        return CachedPairs(*miniature_pairs(painter.vae), seed)
    return CachedPairs(*read_pairs(Path(pretraining.source), painter.latent_shape), seed)


@torch.no_grad()
def miniature_pairs(vae: Any) -> tuple[Tensor, list[str]]:
    """Pictures that the miniature's base was pretrained on, as scaled latents, and their captions."""
    from train.miniature.data import draw_examples
    from train.miniature.pretrain import PICTURES_SEED, as_images

    pictures, captions = draw_examples(MINIATURE_PAIRS, PICTURES_SEED)
    images = tqdm(
        as_images(pictures).split(ENCODE_BATCH),
        desc="encoding them",
        file=sys.stderr,
        disable=not speaks(),
    )
    device = next(vae.parameters()).device
    latents = torch.cat([vae.encode(part.to(device)).latent_dist.mean.cpu() for part in images])
    return latents * vae.config.scaling_factor, captions


def read_pairs(folder: Path, latent_shape: Sequence[int]) -> tuple[Tensor, list[str]]:
    """`latents.safetensors` (key `latents`, [N, C, H, W], scaled) and `captions.jsonl` (a JSON string a line) of a folder.

    Raises:
        ValueError: one sentence naming the file.
    """
    latents_file, captions_file = folder / "latents.safetensors", folder / "captions.jsonl"
    for file in (latents_file, captions_file):
        if not file.is_file():
            raise ValueError(f"pretraining.source: {file} is missing")
    try:
        latents = load_file(latents_file)["latents"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{latents_file}: not a safetensors file with a tensor 'latents' ({error})"
        ) from None
    if latents.shape[1:] != tuple(latent_shape):
        raise ValueError(
            f"{latents_file}: latents are {tuple(latents.shape[1:])}, but the model's are {tuple(latent_shape)}"
        )
    captions = []
    for number, line in enumerate(captions_file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            caption = json.loads(line)
        except json.JSONDecodeError:
            caption = None
        if not isinstance(caption, str):
            raise ValueError(f"{captions_file}:{number}: not a JSON string")
        captions.append(caption)
    if len(captions) != len(latents) or not captions:
        raise ValueError(f"{captions_file}: {len(captions)} captions for {len(latents)} latents")
    return latents, captions
