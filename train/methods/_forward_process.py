"""Forward process: draw clean pictures, judge them, and teach the denoiser its own task on them, each with a weight of its own.

What is drawn is only looked at: no log-probability, no trajectory. Any sampler will do, `sampling.eta` 0 and few steps among them. In an optimiser step every image
is noised (`noisings` times, at timesteps of its own) and the denoiser is asked what it is asked in pretraining (`train.denoising`); what a relative makes of the
answers is `losses`.

Guidance is in the sampling only. A guided sampler draws from no model's distribution, so the policy then learns, without guidance, towards what its guided self has
drawn; the empty prompt is not trained. Where that is not wanted, `sampling.guidance=none`.

Shapes: B images of all processes (or of this one, where a docstring says local), R rows: B images times `noisings`, those of an image neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from evals.arithmetic import micro_batches
from evals.diffusion import Schedule, derive_seed, noise
from train import advantages as better
from train.batches import Judged, ask, judge, reward_report
from train.data import image_indices, prompts_of
from train.denoising import Noised, noised, outputs
from train.methods import Comparison, Evaluations, Method, only_heeded
from train.methods._checks import check_halves, check_noise
from train.run import Run, accumulated, gather, synchronised

if TYPE_CHECKING:
    from train.config import Experiment, Task

Timesteps = Literal["training", "sampled"]
RelativeTo = Literal["batch", "group"]
Beside = Literal["old", "base", "before"]
"""`Policy.old`, the base, or the policy as it was before an iteration's first optimiser step on the task."""


@dataclass(frozen=True)
class Batch:
    """A task's samples, judged: this process's share, in CPU float32; the report is of all."""

    task: Task
    texts: list[str]
    indices: list[int]
    """Image index of each, which with text and task decides how it is noised."""
    latents_BCHW: Tensor
    """Clean."""
    signal_B: Tensor
    """What the method's losses make of an image's reward; NaN leaves the image out."""
    valid: int
    """Images with a signal, over all processes: what the loss is averaged over."""
    report: dict[str, Any]


@dataclass(frozen=True)
class ForwardProcess(Method):
    """What the family shares, of which a relative overrides a part."""

    updates: int = 1
    """Optimiser steps of a task in an iteration, each on the whole batch."""
    noisings: int = 1
    """How often an image is noised for each of them."""
    timesteps: Timesteps = "training"
    """Where: at all timesteps of training alike, as in pretraining, or at those that the sampler visits."""

    same_noise: ClassVar[bool] = False
    """Whether all optimiser steps of an iteration have the same noise, and know what the policy answered before the first."""

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        for field in ("updates", "noisings"):
            if (value := getattr(self, field)) < 1:
                raise ValueError(f"method.{field} is {value}, but it must be at least 1")

    def optimiser_steps(self, experiment: Experiment) -> int:
        return self.updates

    def averaged(self, images: int) -> int:
        return images * self.noisings

    def rows(self, task: Task, processes: int) -> int:
        """Every noising of the images that are trained on, which are shared out, rounded up, where they are fewer than those drawn."""
        return math.ceil(self.trained_images(task) / processes) * self.noisings

    def evaluations(self, experiment: Experiment, task: Task) -> Evaluations:
        sampling, rows = experiment.sampling, self.rows(task, 1)
        drawn = task.batch * sampling.branches * sampling.steps
        compared = rows * len(self.beside()) * (1 if self.same_noise else self.updates)
        return Evaluations(drawn + compared, rows * self.updates)

    # ----------------------------------------------------------------------------------------- what relatives override

    def sampler(self, run: Run) -> AbstractContextManager[None]:
        """Context in which the policy's weights are those that draw."""
        return nullcontext()

    def signal(self, run: Run, task: Task, judged: Judged) -> Tensor:
        """What `losses` is told of each image of the whole batch, float32 [B]; NaN leaves it out."""
        raise NotImplementedError

    def trained_images(self, task: Task) -> int:
        """Images of an iteration that optimiser steps are taken on, over all processes, where all have a reward."""
        return task.batch

    def beside(self) -> tuple[Beside, ...]:
        """What the losses compare with: asked the same, without a gradient."""
        return ()

    def losses(
        self, run: Run, given: Noised, output_RCHW: Tensor, signal_R: Tensor, beside: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each row.

        Args:
            run: with the policy.
            given: some rows, on the CPU.
            output_RCHW: the policy's answers, on the device, with a graph.
            signal_R: of their images, 0 where there is none, on the device.
            beside: answers of `beside`, on the device.

        Returns:
            loss_R, and what else is recorded of each row.
        """
        raise NotImplementedError

    def after(self, run: Run) -> dict[str, Any]:
        """After a task's updates: what else changes, and what is recorded of it."""
        return {}

    # ------------------------------------------------------------------------------------------------------- algorithm

    def check_before(self, run: Run) -> None:
        task, size = run.experiment.tasks[0], run.experiment.update.micro_batch
        prompts_P = prompts_of(task, run.prompt_sets[task.prompts], run.seed, 0)
        texts = [prompt.text for prompt in prompts_P][:size]
        seed, indices = derive_seed("identity", run.seed), list(range(len(texts)))
        check_noise(run, texts, seed)
        with self.sampler(run):
            latents_BCHW = run.policy.painter.draw(texts, indices, seed).latents_BCHW
        ones_B = torch.ones(len(texts))
        batch = Batch(task, texts, indices, latents_BCHW, ones_B, len(texts), {})
        # one noising an image, and rows of the first: a micro-batch holds no more
        once = replace(self, noisings=1)
        others = answers_beside(run, once, batch, 0)
        check_halves(run, len(texts), lambda rows: losses_of(run, once, batch, 0, others, rows)[0])

    def collect(self, run: Run, task: Task, iteration: int) -> Batch:
        """What we ask, what the sampler draws, how good it is, and what that means to the losses."""
        asked, painter = ask(run, task, iteration), run.policy.painter
        with self.sampler(run):
            latents_BCHW = painter.draw(asked.texts, asked.indices, asked.seed).latents_BCHW
        judged = judge(run, task, painter.decode(latents_BCHW), asked)
        signal_B = self.signal(run, task, judged)
        valid = int(signal_B.isfinite().sum())
        report = reward_report(task, judged, signal_B.nan_to_num(nan=0.0)) | {
            "trained_on": valid,
            "zero_signal": int((signal_B == 0).sum()) / max(1, valid),
        }
        return Batch(task, asked.texts, asked.indices, latents_BCHW, signal_B[asked.mine], valid, report)

    def update(self, run: Run, batch: Batch, on_policy: bool) -> dict[str, Any]:
        """`updates` optimiser steps, each over the whole batch."""
        found, others = [], dict[str, Tensor]()
        for step in range(self.updates):
            if step == 0 or not self.same_noise:
                others = answers_beside(run, self, batch, step)
            sums = accumulated(run, partial(accumulate, run, self, batch, step, others))
            found.append(sums | {"grad_norm": float(run.policy.optimiser_step())})
        scale = {} if run.policy.loss_scale is None else {"loss_scale": run.policy.loss_scale.value}
        return batch.report | update_report(found) | scale | self.after(run)


def update_report(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Diagnostics of a task's updates: over all of them, and by their number."""
    by_number = {name: {str(i): each[name] for i, each in enumerate(found)} for name in found[0]}
    norms = by_number.pop("grad_norm")
    averages = {name: sum(values.values()) / len(found) for name, values in by_number.items()}
    return averages | {"grad_norm": norms} | {f"{name}_by_update": v for name, v in by_number.items()}


def accumulate(
    run: Run, method: ForwardProcess, batch: Batch, step: int, others: Mapping[str, Tensor]
) -> dict[str, float]:
    """Accumulate the gradient of an optimiser step, a micro-batch at a time.

    The loss is the mean over all noisings of all images with a signal, of all processes: neither their number nor the micro-batch is in it.

    Returns:
        means of what is recorded, over the same.
    """
    size = len(batch.texts) * method.noisings
    # DDP averages over processes, the loss is a sum over all images divided by their number
    scale = run.world / (max(1, batch.valid) * method.noisings)
    valid_R = batch.signal_B.isfinite().repeat_interleave(method.noisings)
    names, parts = list[str](), []
    for rows in micro_batches(size, run.experiment.update.micro_batch):
        with synchronised(run, last=rows.stop == size):
            loss_R, found = losses_of(run, method, batch, step, others, rows)
            run.policy.backward(loss_R.sum() * scale)
        names = ["loss", *found]
        parts.append(torch.stack([loss_R.detach(), *found.values()], 1).cpu())
    recorded_RN = torch.cat(parts).double().where(valid_R[:, None], 0.0)
    total_N = gather(run, recorded_RN).sum(0) / (max(1, batch.valid) * method.noisings)
    return dict(zip(names, total_N.tolist(), strict=True))


def losses_of(
    run: Run, method: ForwardProcess, batch: Batch, step: int, others: Mapping[str, Tensor], rows: slice
) -> tuple[Tensor, dict[str, Tensor]]:
    """`ForwardProcess.losses` of some rows of a local batch, at most a micro-batch; exactly 0 for an image without a signal."""
    device = run.accelerator.device
    signal_R = batch.signal_B.repeat_interleave(method.noisings)[rows].to(device)
    given = noised_rows(run, method, batch, step, rows)
    output_RCHW = answered(run, given)
    beside = {name: answers_RCHW[rows].to(device) for name, answers_RCHW in others.items()}
    loss_R, found = method.losses(run, given, output_RCHW, signal_R.nan_to_num(nan=0.0), beside)
    return loss_R.where(signal_R.isfinite(), 0.0), {name: value.detach() for name, value in found.items()}


def answers_beside(run: Run, method: ForwardProcess, batch: Batch, step: int) -> dict[str, Tensor]:
    """What other policies answer to all local rows, on the CPU: asked before the gradient is taken, so that weights change places once."""
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "old": run.policy.as_old,
        "base": run.policy.as_base,
        "before": nullcontext,
    }
    size, micro_batch = len(batch.texts) * method.noisings, run.experiment.update.micro_batch
    answers = dict[str, Tensor]()
    for name in method.beside():
        with contexts[name](), torch.no_grad():
            parts = [
                answered(run, noised_rows(run, method, batch, step, rows)).cpu()
                for rows in micro_batches(size, micro_batch)
            ]
        answers[name] = torch.cat(parts)
    return answers


def answered(run: Run, given: Noised) -> Tensor:
    """The policy's answers to all rows given, at most a micro-batch, on the device."""
    return outputs(run, given, slice(0, len(given.texts)))


def noised_rows(run: Run, method: ForwardProcess, batch: Batch, step: int, rows: slice) -> Noised:
    """Some rows of a local batch as an optimiser step gives them to the denoiser. What an image is given follows from it alone: text, index and task."""
    painter, task = run.policy.painter, batch.task
    choices = timesteps_to_train(painter.schedule, method.timesteps)
    step = 0 if method.same_noise else step
    images, times, noises = [], [], []
    for image, place in (divmod(row, method.noisings) for row in range(rows.start, rows.stop)):
        text, index = batch.texts[image], batch.indices[image]
        generator = torch.Generator().manual_seed(
            derive_seed("forward timesteps", run.seed, task.name, text, index, step)
        )
        uniform_N = torch.rand(method.noisings, generator=generator, dtype=torch.float64)
        times.append(choices[int(stratified(uniform_N, len(choices))[place])])
        seed = derive_seed("forward noise", run.seed, task.name, step, place)
        noises.append(noise(seed, text, index, painter.latent_shape, 0)[0])
        images.append(image)
    texts = [batch.texts[image] for image in images]
    return noised(painter, batch.latents_BCHW[images], texts, torch.stack(noises), torch.tensor(times))


def timesteps_to_train(schedule: Schedule, kind: Timesteps) -> Sequence[int]:
    """Training timesteps to draw from."""
    return schedule.timesteps if kind == "sampled" else range(len(schedule.train_alpha))


def stratified(uniform_N: Tensor, choices: int) -> Tensor:
    """One of `choices` things for each of N draws, the j-th from the j-th of N equal parts: together uniform, and less alike than independent ones.

    As in the release of advantage-weighted matching (`time_type` "discrete", less its `timestep_fraction`); with N = choices each is drawn once.

    Args:
        uniform_N: in [0, 1), float64.
        choices: how many things.

    Returns:
        index_N int64.
    """
    draws = len(uniform_N)
    return ((torch.arange(draws) + uniform_N) * choices / draws).long().clamp(max=choices - 1)


# ------------------------------------------------------------------------------------------- what relatives have in common


def advantages(judged: Judged, relative_to: RelativeTo, clip: float) -> Tensor:
    """Better than expected? By the whole batch (Eq 10) or by the images of the prompt; cut at +-clip, NaN where there is no reward. [B]."""
    shaped = judged.shaped
    if relative_to == "group":
        return better.group_relative(shaped.credit_B, judged.prompt_B).clamp(-clip, clip)
    found_B = better.advantages(shaped.credit_B, clip, shaped.group_B)
    return found_B.where(shaped.credit_B.isfinite(), torch.nan)


def check_groups(experiment: Experiment, comparison: Comparison) -> None:
    """Refuse tasks in which the images of a prompt cannot be compared with each other.

    Args:
        experiment: with the tasks.
        comparison: what asks for it, and what else that field may be.

    Raises:
        ValueError: one sentence that names the task's field and the choices.
    """
    field, instead = comparison
    if experiment.mixing == "gdpo":
        raise ValueError(
            f"{field}, but with mixing gdpo each reward is relative to the images of its prompt already, and their sum is compared with the batch: use {instead}"
        )
    for task in experiment.tasks:
        where = f"tasks.{task.name}"
        if task.images_per_prompt < 2:
            raise ValueError(
                f"{field}, which compares the images of a prompt, but {where}.images_per_prompt is {task.images_per_prompt}: use at least 2, or {instead}"
            )
        if task.shares_reward:
            raise ValueError(
                f"{field}, which compares the images of a prompt, but with {where}.credit shared they all have one reward: use leave_one_out, or {instead}"
            )


def distance(output_RCHW: Tensor, other_RCHW: Tensor) -> Tensor:
    """Mean squared difference of two policies' answers, over dimensions: [R].

    Times kappa_t^2 dims / 2 it is the KL divergence of their DDIM transitions (`Schedule.gradient_scale`), so it is not recorded as `kl`, which is in nats.
    """
    return ((output_RCHW - other_RCHW) ** 2).flatten(1).mean(1)


def alpha_of(schedule: Schedule, timestep_R: Tensor) -> Tensor:
    """Cumulative alpha at training timesteps, float64 [R] on the CPU."""
    return torch.tensor(schedule.train_alpha, dtype=torch.float64)[timestep_R.cpu()]


def all_prompts(run: Run, task: Task, iteration: int) -> tuple[list[str], list[int]]:
    """Texts and image indices of the whole batch of an iteration."""
    prompts_P = prompts_of(task, run.prompt_sets[task.prompts], run.seed, iteration)
    return [p.text for p in prompts_P for _ in range(task.images_per_prompt)], image_indices(task, iteration)


def shared_out(run: Run, batch: Batch, iteration: int) -> Batch:
    """A batch in which only the images with a signal are left, the same number on every process.

    They may all have been drawn by one. Whatever is missing to an equal number is a copy of the last, without a signal.
    """
    kept = gather(run, batch.signal_B).isfinite().nonzero()[:, 0]
    share = len(batch.texts)
    is_mine = (kept // share) == run.rank
    latents_ACHW = torch.zeros(len(kept), *batch.latents_BCHW.shape[1:])
    latents_ACHW[is_mine] = batch.latents_BCHW[kept[is_mine] - run.rank * share]
    everywhere_ACHW = run.accelerator.reduce(latents_ACHW.to(run.accelerator.device)).cpu()
    each = -(-len(kept) // run.world)
    places = range(run.rank * each, (run.rank + 1) * each)
    taken = [min(place, len(kept) - 1) for place in places]
    texts, indices = all_prompts(run, batch.task, iteration)
    signal_B = gather(run, batch.signal_B)[kept[taken]]
    signal_B[[place >= len(kept) for place in places]] = torch.nan
    return replace(
        batch,
        texts=[texts[kept[place]] for place in taken],
        indices=[indices[kept[place]] for place in taken],
        latents_BCHW=everywhere_ACHW[taken],
        signal_B=signal_B,
    )


def released_recipe(
    experiment: Experiment, method: Method, sampling_steps: int, batch: int, ema: float
) -> Experiment:
    """Stable Diffusion with what the releases of DiffusionNFT and of advantage-weighted matching share, which are for Stable Diffusion 3.5.

    LoRA of rank 32 with alpha 64 at 3e-4, weight decay 1e-4, gradient norm 1, advantages within +-5; a deterministic sampler of few steps without guidance; 24 images of a prompt,
    less their mean and over the standard deviation of the batch (`global_std`), which is baseline "group" here. Parity's tasks keep their groups.

    Args:
        experiment: on a Stable Diffusion.
        method: to train it with.
        sampling_steps: denoising steps.
        batch: images of an iteration; fewer where the experiment has fewer.
        ema: decay of the averaged weights.
    """
    from train.config import Ema, Lora, nearest_multiple

    group = 24

    def grouped(task: Task) -> Task:
        if task.shaping == "parity":
            return task
        size = min(task.batch, batch)
        divisor = 8 * group if size >= 8 * group else group  # one group or more for each of eight GPUs
        return replace(task, batch=nearest_multiple(size, divisor), images_per_prompt=group, baseline="group")

    update = replace(
        only_heeded(experiment.update, method),
        lr=3e-4,
        weight_decay=1e-4,
        max_grad_norm=1.0,
        advantage_clip=5.0,
    )
    return replace(
        experiment,
        method=method,
        tasks=tuple(grouped(task) for task in experiment.tasks),
        sampling=replace(experiment.sampling, steps=sampling_steps, eta=0.0, guidance=None),
        update=update,
        lora=Lora(rank=32, alpha=64.0),
        ema=Ema(decay=ema),
    )
