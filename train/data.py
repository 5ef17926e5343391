"""What an iteration is given: its prompts, its denoising steps, its pretraining pairs. Pure functions of (seed, iteration).

The iteration number is the whole cursor: a resumed run goes on with the prompts that the stopped one would have asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from evals.arithmetic import micro_batches, padded
from evals.checkpoints import first_line
from evals.diffusion import Painter, derive_seed, noise
from prompts import Prompt
from train.config import Pretraining, Task
from train.images import UNREADABLE, Pairs, open_pairs, picture_of
from train.launch import speaks

MINIATURE_PAIRS = 2048  # at 48 an iteration, as in results/README.md, sixty iterations see each once or twice
ENCODE_BATCH = 64
LATENTS, CAPTIONS = "latents.safetensors", "captions.jsonl"


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


class DataFailed(Exception):
    """Pretraining data that cannot be used; the message is one sentence."""


class PretrainingSource(Protocol):
    """Where the pairs of Eq 9 come from."""

    skipped: int
    """Pairs of the last batch, on this process, in whose place others were taken because they cannot be read."""

    def batch(self, iteration: int, size: int, rank: int, world: int) -> tuple[Tensor, list[str]]:
        """This process's share of an iteration's pairs: latents [size / world, C, H, W] float32, scaled, and captions.

        Raises:
            DataFailed: where too many cannot be read.
        """


class CachedPairs:
    """Latents and captions held in memory."""

    skipped = 0

    def __init__(self, latents_NCHW: Tensor, captions_N: Sequence[str], seed: int) -> None:
        self.latents_NCHW = latents_NCHW
        self.captions_N = captions_N
        self.seed = seed

    def batch(self, iteration: int, size: int, rank: int, world: int) -> tuple[Tensor, list[str]]:
        """See `PretrainingSource`; every pair once before any twice."""
        mine = _share(len(self.captions_N), self.seed, iteration, size, rank, world)
        return self.latents_NCHW[mine].float(), [self.captions_N[i] for i in mine]


def _share(pairs: int, seed: int, iteration: int, size: int, rank: int, world: int) -> list[int]:
    """Numbers of this process's pairs in an iteration: all pairs once before any twice."""
    share = size // world
    return positions(pairs, iteration * size + rank * share, share, "pretraining", seed)


class EncodedPairs:
    """Pictures that are read, resized, cut and encoded when they are asked for.

    A latent is a sample of what the encoder takes for likely, as in the released code (`calculate_mse_loss`) and in the training of latent diffusion models; its
    noise is the pair's own, from (seed, caption, place in the run). In the place of a picture that cannot be read comes one that its place decides: a batch
    depends on seed, iteration and data alone.
    """

    ATTEMPTS = 20
    """Pictures that are tried for one place."""
    JUDGED_FROM = 100
    """Pictures that must have been tried before a share of them says something."""
    READERS = 8

    def __init__(self, pairs: Pairs, painter: Painter, seed: int, max_unreadable: float) -> None:
        self.pairs, self.painter, self.seed, self.max_unreadable = pairs, painter, seed, max_unreadable
        self.skipped = 0
        self._tried = self._unreadable = 0  # by this process, since it was started

    def batch(self, iteration: int, size: int, rank: int, world: int) -> tuple[Tensor, list[str]]:
        """See `PretrainingSource`; reads no more than this process's share."""
        mine = _share(len(self.pairs), self.seed, iteration, size, rank, world)
        first = iteration * size + rank * len(mine)
        latents, captions, self.skipped = [], list[str](), 0
        with ThreadPoolExecutor(self.READERS) as readers:
            for rows in micro_batches(len(mine), self.painter.sampling.micro_batch):
                places = range(first + rows.start, first + rows.stop)
                found = list(readers.map(self._readable, mine[rows], places))
                self._judge(found)
                captions += [caption for _, caption, _ in found]
                latents.append(
                    self._encoded(torch.stack([picture for picture, _, _ in found]), captions[rows], places)
                )
        return torch.cat(latents), captions

    def _readable(self, number: int, place: int) -> tuple[Tensor, str, list[str]]:
        """A pair, or the first that can be read of those that come in its place, and what is wrong with those before.

        Raises:
            DataFailed: where none can.
        """
        wrong: list[str] = []
        for attempt in range(self.ATTEMPTS):
            if attempt:
                number = derive_seed("replacement", self.seed, place, attempt) % len(self.pairs)
            try:
                content, caption = self.pairs.read(number)
                return picture_of(content, *self._pixels()), caption, wrong
            except UNREADABLE as error:
                wrong.append(f"{self.pairs.where(number)} ({first_line(error)})")
        raise DataFailed(
            f"pretraining data: {self.ATTEMPTS} pictures in a row cannot be read, the last is {wrong[-1]}"
        )

    def _judge(self, found: Sequence[tuple[Tensor, str, list[str]]]) -> None:
        """Count what cannot be read.

        Raises:
            DataFailed: where it is too much.
        """
        wrong = [sentence for _, _, sentences in found for sentence in sentences]
        self.skipped += len(wrong)
        self._unreadable += len(wrong)
        self._tried += len(found) + len(wrong)
        if self._tried >= self.JUDGED_FROM and self._unreadable > self.max_unreadable * self._tried:
            raise DataFailed(
                f"pretraining data: {self._unreadable} of {self._tried} pictures cannot be read, such as {wrong[-1]}, "
                f"and pretraining.max_unreadable allows a share of {self.max_unreadable:g}"
            )

    def _pixels(self) -> tuple[int, int]:
        """Height and width of a picture of the model's."""
        factor = 2 ** (len(self.painter.vae.config.block_out_channels) - 1)
        return factor * self.painter.latent_shape[1], factor * self.painter.latent_shape[2]

    def _encoded(self, images_BCHW: Tensor, captions: Sequence[str], places: Sequence[int]) -> Tensor:
        seed = derive_seed("posterior", self.seed)
        shape = self.painter.latent_shape
        noises = [
            noise(seed, caption, place, shape, 0)[0] for caption, place in zip(captions, places, strict=True)
        ]
        return encode(self.painter.vae, images_BCHW, torch.stack(noises), self.painter.sampling.micro_batch)


@torch.no_grad()
def encode(vae: Any, images_BCHW: Tensor, noise_BCHW: Tensor, micro_batch: int) -> Tensor:
    """Images to latents, as the reverse of `evals.decoder.decode`: a sample of the encoder's Gaussian, scaled.

    Args:
        vae: the autoencoder.
        images_BCHW: RGB in [0, 1].
        noise_BCHW: standard normal, of the latents' shape.
        micro_batch: images at a time; every call has that many, so that an image's latent does not depend on its neighbours.

    Returns:
        float32 [B, C, H, W] on the CPU.
    """
    parameter = next(vae.parameters())
    latents = []
    for rows in micro_batches(len(images_BCHW), micro_batch):
        signed = 2 * images_BCHW[rows].to(parameter.device, parameter.dtype) - 1
        gaussian = padded(lambda x: vae.encode(x).latent_dist, micro_batch, signed)
        mean, sigma = (part[: rows.stop - rows.start].float().cpu() for part in (gaussian.mean, gaussian.std))
        latents.append((mean + sigma * noise_BCHW[rows]) * vae.config.scaling_factor)
    return torch.cat(latents)


def pretraining_source(pretraining: Pretraining, painter: Painter, seed: int) -> PretrainingSource:
    """Open the pairs that an experiment names.

    Raises:
        ValueError: one sentence naming the file that is missing, damaged or does not fit the model.
    """
    if pretraining.source == "miniature":
        return CachedPairs(*miniature_pairs(painter.vae), seed)
    folder = Path(pretraining.source)
    if any((folder / name).exists() for name in (LATENTS, CAPTIONS)):
        return CachedPairs(*read_pairs(folder, painter.latent_shape), seed)
    pairs = open_pairs(pretraining.source, pretraining.max_unreadable)
    return EncodedPairs(pairs, painter, seed, pretraining.max_unreadable)


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
    latents_file, captions_file = folder / LATENTS, folder / CAPTIONS
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
    if not latents.isfinite().all():
        raise ValueError(f"{latents_file}: latents are not all numbers")
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
