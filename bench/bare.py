"""The calls that an iteration cannot do without, and nothing else: denoiser, decoder, reward. What is above their time is the trainer's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from evals.arithmetic import micro_batches
from evals.conditioning import Conditioning
from evals.diffusion import predict
from train.batches import at_once
from train.rewards import given_together
from train.run import Run


@dataclass(frozen=True)
class Seconds:
    """Of the parts of an iteration of one task."""

    rollout: float
    decoder: float
    reward: float
    update: float

    @property
    def total(self) -> float:
        """Of the iteration."""
        return self.rollout + self.decoder + self.reward + self.update


class BareCalls:
    """Every forward of the denoiser in the rollout, every forward and backward of the update, decoder, reward, of a run's own shapes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        (self.task,) = run.experiment.tasks
        prompts = run.prompt_sets[self.task.prompts]
        self.prompts = [prompts[i % len(prompts)] for i in range(self.task.batch)]
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(self.task.batch, *run.policy.painter.latent_shape, generator=generator)
        self.cond = run.policy.painter.encoder([prompt.text for prompt in self.prompts])
        self.uncond = run.policy.painter.unconditional()

    def __call__(self) -> Seconds:
        """Do them."""
        painter, experiment = self.run.policy.painter, self.run.experiment
        steps, marks = painter.schedule.timesteps, [now()]
        with torch.no_grad():
            for rows in micro_batches(len(self.latents), painter.sampling.micro_batch):
                for timestep in steps:
                    self.denoise(painter.unet, rows, timestep)
            marks.append(now())
            images = painter.decode(self.latents)
            marks.append(now())
            for scorer in (self.run.scorers[name] for name in self.task.scorers):
                for rows in given_together(scorer, len(images), at_once(self.run)):
                    scorer(images[rows], self.prompts[rows])
            marks.append(now())
        for timestep in steps[: experiment.update.trained_steps]:
            for rows in micro_batches(len(self.latents), experiment.update.micro_batch):
                self.denoise(self.run.policy.module, rows, timestep).mean().backward()
            self.run.policy.forget_gradients()
        marks.append(now())
        return Seconds(*(after - before for before, after in pairwise(marks)))

    def denoise(self, unet: nn.Module, rows: slice, timestep: int) -> Tensor:
        """The answer for some images, guidance included, of the denoiser as it draws or as it is updated."""
        sampling, device = self.run.experiment.sampling, self.run.accelerator.device
        cond = Conditioning(*(column.to(device) for column in self.cond.part(rows).columns()))
        return predict(
            unet,
            self.latents[rows].to(device),
            timestep,
            cond,
            self.uncond,
            sampling.guidance,
            sampling.precision,
        )


def now() -> float:
    """Seconds on a clock, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
