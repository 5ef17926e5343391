"""Gradient of the reward through the last steps of the sampler: what ReFL and DRaFT share.

Latents are drawn without a gradient up to a late step. From there on the sampler has one: some steps, the decoder, the reward, and a function of it that is
minimised. One optimiser step on the whole batch. There is no log-probability, no advantage and no copy of the denoiser; the reward has to be one of a picture by
itself, with a gradient (`differentiable`, see `evals.scorers`).

The chain rule is applied in two parts, which changes nothing but memory: first the loss is differentiated by the final latents, through reward and decoder, some
pictures at a time (`slopes`), then those numbers go back through the denoiser. So the decoder never holds more pictures than `sampling.decode_batch`,
and a reward that fails does so before processes wait for each other's gradients.

Shapes: B images of all processes (or of this one, where a docstring says local), N steps that are differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from evals import scorers
from evals.arithmetic import micro_batches, padded
from evals.conditioning import Conditioning
from evals.decoder import Kept, at_a_time, pixels
from evals.diffusion import Schedule, derive_seed, noise, predict, transition
from train.batches import Asked, ask, judge, mean_of, raise_where_any_failed, reward_report
from train.config import Experiment, Task
from train.data import draw_steps, prompts_of
from train.gates import GateBroken, check_part
from train.methods import PAPERS, Evaluations, Method, only_heeded
from train.methods._checks import check_halves, check_noise
from train.rewards import RewardFailed, differentiated, score
from train.run import Run, accumulated, gather, own_stream, synchronised

if TYPE_CHECKING:
    from prompts import Prompt

REWARD_TOLERANCE = 1e-4
"""How far the reward that is differentiated may be from a call of its scorer, relative to the largest or 1: the same arithmetic on the same pictures."""


@dataclass(frozen=True)
class Batch:
    """A task's latents, drawn up to the first step that is differentiated."""

    task: Task
    asked: Asked
    first: int
    """Index of that step in the sampler."""
    latents_BCHW: Tensor
    """Local, before that step. CPU float32."""


class Found(NamedTuple):
    """What accumulating a gradient has met on the way: local, on the CPU."""

    images_BCHW: Tensor
    """Pictures of the sampler, of the first noising."""
    reward_M: Tensor
    """Of every image and noising; NaN = not applicable."""
    loss_M: Tensor
    silent_M: Tensor
    """Whether its gradient is 0."""


class Slopes(NamedTuple):
    """A loss of final latents, and its gradient. On the device."""

    images_BCHW: Tensor
    reward_B: Tensor
    loss_B: Tensor
    """NaN where the reward is."""
    slope_BCHW: Tensor
    """d loss / d latents; 0 where the reward is NaN."""


@dataclass(frozen=True)
class RewardGradient(Method):
    """What the two methods have in common; they say which steps are differentiated, how often, and what is minimised."""

    pools: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = True

    def firsts(self, steps: int) -> tuple[int, ...]:
        """Steps of a sampler of so many at which its gradient may begin; one of them is drawn for each iteration."""
        raise NotImplementedError

    def differentiated(self, schedule: Schedule, first: int) -> Schedule:
        """The steps that have a gradient, as a sampler of their own."""
        raise NotImplementedError

    @property
    def views(self) -> int:
        """How many views of a picture the reward is shown; what is differentiated is its mean."""
        return 1

    def seen(
        self, asked: Asked, repeat: int, first: int, images_BCHW: Tensor, rows: slice, view: int
    ) -> Tensor:
        """What the reward is shown of some pictures, with a graph: themselves.

        Args:
            asked: local.
            repeat: number of the noising.
            first: place in `asked` of the micro-batch's first.
            images_BCHW: on the device, in [0, 1].
            rows: of the micro-batch.
            view: number of this view of them.
        """
        return images_BCHW

    def loss(self, reward_B: Tensor) -> Tensor:
        """What is minimised, [B]."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------- the contract

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if experiment.sampling.decoder_precision == "tf32":
            raise ValueError(
                f"sampling.decoder_precision is tf32, but the method {self.name} takes a gradient through the decoder, which TF32 has no part in: use fp32 or bf16"
            )
        for task in experiment.tasks:
            where = f"tasks.{task.name}"
            if task.shaping != "pointwise":
                raise ValueError(
                    f"{where}.shaping is {task.shaping}, a reward of a set of pictures, which counts classes and has no gradient: the method "
                    f"{self.name} needs pointwise; {PAPERS} trains on either"
                )
            if task.baseline != "batch":
                raise ValueError(
                    f"{where}.baseline is {task.baseline}, but the method {self.name} compares no image with another: leave it at batch"
                )
            for term in task.rewards:
                if not scorers.is_differentiable(scorers.load(term.scorer, "cpu", experiment.domain)):
                    raise ValueError(
                        f"{where}.rewards has {term.scorer}, which has no gradient to its pictures: the method {self.name} needs one of "
                        f"{', '.join(scorers.differentiable_names(experiment.domain))}, or a file whose Scorer has differentiable; "
                        f"{PAPERS} trains on any"
                    )

    def optimiser_steps(self, experiment: Experiment) -> int:
        return 1

    def evaluations(self, experiment: Experiment, task: Task) -> Evaluations:
        """On average over the steps at which the gradient may begin; a run counts what it did (`update`)."""
        firsts = self.firsts(experiment.sampling.steps)
        each = task.batch * experiment.sampling.branches
        return Evaluations(each * sum(firsts) // len(firsts), each * self.length * self.repeats)

    def evaluations_done(self, experiment: Experiment, task: Task, first: int) -> Evaluations:
        """Of an iteration whose gradient began at that step."""
        each = task.batch * experiment.sampling.branches
        return Evaluations(each * first, each * self.length * self.repeats)

    def collect(self, run: Run, task: Task, iteration: int) -> Batch:
        """What we ask, and what the model draws of it before the gradient begins."""
        firsts = self.firsts(len(run.policy.painter.schedule))
        (first,) = draw_steps(firsts, 1, run.seed, task, iteration)
        return drawn_until(run, task, ask(run, task, iteration), first)

    def update(self, run: Run, batch: Batch, on_policy: bool) -> dict[str, Any]:
        """One optimiser step; the pictures that were differentiated are judged as those of every method are."""
        policy, task = run.policy, batch.task
        found = accumulated(run, partial(self.accumulate, run, batch))
        judged = judge(run, task, found.images_BCHW, batch.asked)
        columns = torch.stack([found.reward_M, found.loss_M, found.silent_M], 1)
        reward_M, loss_M, silent_M = gather(run, columns).unbind(1)
        valid_M = reward_M.isfinite()
        if not valid_M.any():
            raise RewardFailed(
                f"the reward of task {task.name} applies to no picture that was differentiated"
            )
        scale_gradients(run, len(valid_M) / int(valid_M.sum()))
        norm = float(policy.optimiser_step())
        done = self.evaluations_done(run.experiment, task, batch.first)
        # the loop adds what an iteration costs on average
        run.progress.denoiser_evaluations += sum(done) - sum(self.evaluations(run.experiment, task))
        report = reward_report(task, judged, judged.shaped.credit_B)
        del report["advantage_max"]  # nothing is compared
        scale = {} if policy.loss_scale is None else {"loss_scale": policy.loss_scale.value}
        return (
            report
            | {
                "loss": mean_of(loss_M),
                "silent": mean_of(silent_M[valid_M]),
                "grad_norm": {str(policy.painter.schedule.timesteps[batch.first]): norm},
            }
            | scale
        )

    def check_before(self, run: Run) -> None:
        """For one micro-batch: noise, the reward, and the gradient of halves.

        Raises:
            GateBroken: where an image's noise depends on its batch, the reward that is differentiated is not the scorer's or has no gradient, or
                parts do not make the whole.
            RewardFailed: where the reward cannot be had.
        """
        task, gates = run.experiment.tasks[0], run.progress.gates
        precision = run.experiment.sampling.precision
        prompts_P = prompts_of(task, run.prompt_sets[task.prompts], run.seed, 0)[
            : run.experiment.update.micro_batch
        ]
        count, seed = len(prompts_P), derive_seed("identity", run.seed)
        asked = Asked(list(prompts_P), list(range(count)), seed, slice(0, count))
        check_noise(run, asked.texts, seed)
        batch = drawn_until(run, task, asked, self.firsts(len(run.policy.painter.schedule))[0])

        def latents_of(rows: slice) -> Tensor:
            return self.latents(run, batch, rows, batch.latents_BCHW[rows], 0)

        with torch.no_grad():
            latents_BCHW = latents_of(slice(0, count))
        found = slopes(run, task, latents_BCHW, asked.prompts, lambda reward_B: reward_B)
        called_B = torch.zeros(count)
        for term in task.rewards:
            with own_stream(run, term.scorer):
                scorer = run.scorers[term.scorer]
                called_B += term.weight * score(term.scorer, scorer, found.images_BCHW.cpu(), asked.prompts)
        off_B = (found.reward_B.cpu() - called_B).abs() / called_B.abs().nan_to_num().max().clamp(min=1)
        applies_B = called_B.isfinite()
        differs = float(off_B[applies_B].max()) if applies_B.any() else 0.0
        check_part(gates, "reward", differs, REWARD_TOLERANCE, precision)
        if applies_B.any():
            if not found.slope_BCHW.any():
                raise GateBroken(
                    f"the reward of task {task.name} has no gradient at the first {count} pictures, so there is nothing to train on"
                )
            check_halves(
                run, count, lambda rows: (latents_of(rows) * found.slope_BCHW[rows]).flatten(1).sum(1)
            )

    # ------------------------------------------------------------------------------------------------------- algorithm

    def accumulate(self, run: Run, batch: Batch) -> Found:
        """Accumulate the gradient of the loss, a micro-batch and a noising at a time; a masked image has none.

        It is that of the sum over images and noisings divided by their number over all processes, masked ones included: how many those are is known at
        the end, and `update` corrects for it. Each graph is freed before the next one is made.

        Raises:
            RewardFailed: on all processes, where a reward failed on one.
        """
        size, repeats = len(batch.latents_BCHW), self.repeats
        # DDP averages over processes, the loss is a sum over all images divided by their number
        scale = run.world / (batch.task.batch * repeats)
        after = self.differentiated(run.policy.painter.schedule, batch.first)
        images, met = [], []
        for rows in micro_batches(size, run.experiment.update.micro_batch):
            x_BCHW = batch.latents_BCHW[rows]
            drawn_BCHW = x_BCHW
            for repeat in range(repeats):
                last = rows.stop == size and repeat == repeats - 1
                if repeat:
                    z_BCHW = late_noise(run, batch, rows, repeat, 0)[:, 0]
                    x_BCHW = renoised(after, drawn_BCHW, z_BCHW)
                with synchronised(run, last=last):
                    latents_BCHW = self.latents(run, batch, rows, x_BCHW, repeat)
                    prompts_B = batch.asked.prompts[rows]
                    seen = partial(self.seen, batch.asked, repeat, rows.start)
                    found = agreed(
                        run,
                        partial(
                            slopes, run, batch.task, latents_BCHW, prompts_B, self.loss, seen, self.views
                        ),
                    )
                    run.policy.backward((latents_BCHW * found.slope_BCHW).sum() * scale)
                if not repeat:
                    drawn_BCHW = latents_BCHW.detach().cpu()
                    images.append(found.images_BCHW.cpu())
                silent_B = (found.slope_BCHW == 0).flatten(1).all(1)
                met.append(torch.stack([found.reward_B, found.loss_B, silent_B.float()]).cpu())
        return Found(torch.cat(images), *torch.cat(met, 1).unbind())

    def latents(self, run: Run, batch: Batch, rows: slice, x_BCHW: Tensor, repeat: int) -> Tensor:
        """Final latents of some rows of a local batch, at most a micro-batch, through the denoiser that is trained: on the device, with a graph where there is one.

        Args:
            run: with the policy.
            batch: of `collect`.
            rows: of it.
            x_BCHW: their latents before the first of these steps.
            repeat: number of the noising, which decides what noise the steps add.
        """
        painter, device, sampling = run.policy.painter, run.accelerator.device, run.experiment.sampling
        after = self.differentiated(painter.schedule, batch.first)
        uncond, count = painter.unconditional(), rows.stop - rows.start
        noise_BNCHW = late_noise(run, batch, rows, repeat, len(after) if sampling.eta > 0.0 else 0)
        columns = (x_BCHW, noise_BNCHW, *painter.encoder(batch.asked.texts[rows]).columns())

        def steps(x: Tensor, noise_: Tensor, *cond: Tensor) -> Tensor:
            for step, timestep in enumerate(after.timesteps):
                output = predict(
                    run.policy.module,
                    x,
                    timestep,
                    Conditioning(*cond),
                    uncond,
                    sampling.guidance,
                    sampling.precision,
                )
                mean, sigma = transition(after, x, output, step, sampling.eta)
                x = mean + sigma * noise_[:, 1 + step] if sigma > 0.0 else mean
            return x

        final_BCHW: Tensor = padded(
            steps, run.experiment.update.micro_batch, *(column.to(device) for column in columns)
        )
        return final_BCHW[:count]


# ------------------------------------------------------------------------------------------------------------------ parts


def part(schedule: Schedule, steps: slice) -> Schedule:
    """Some consecutive steps of a sampler, as a sampler of their own."""
    return replace(
        schedule,
        timesteps=schedule.timesteps[steps],
        alpha=schedule.alpha[steps],
        alpha_prev=schedule.alpha_prev[steps],
    )


def to_original(schedule: Schedule) -> Schedule:
    """The same steps, of which the last ends at the predicted x_0.

    The mean of a transition is sqrt(alpha-bar_{t-1}) x_0 + sqrt(1 - alpha-bar_{t-1} - sigma^2) epsilon (arXiv 2010.02502, eq. 12): with
    alpha-bar_{t-1} = 1 sigma is 0 and x_0 is left, whatever the denoiser predicts.
    """
    return replace(schedule, alpha_prev=(*schedule.alpha_prev[:-1], 1.0))


def renoised(after: Schedule, x0_BCHW: Tensor, z_BCHW: Tensor) -> Tensor:
    """What the sampler drew, noised to its first differentiated step: sqrt(a / a_0) x + sqrt(1 - a / a_0) z, [B, C, H, W].

    q(x_t | x_0) of DRaFT-LV (arXiv 2309.17400), where the sampler's last alpha-bar a_0 is 1; where it is less, its x still has the noise of a_0, and this is
    q(x_t | x) of the same forward process.
    """
    kept = after.alpha[0] / after.alpha_prev[-1]
    return math.sqrt(kept) * x0_BCHW + math.sqrt(1.0 - kept) * z_BCHW


def late_noise(run: Run, batch: Batch, rows: slice, repeat: int, steps: int) -> Tensor:
    """Noise of some local images after the first differentiated step: of the noising and of `steps` transitions, [rows, 1 + steps, C, H, W]."""
    seed, shape = derive_seed("late steps", batch.asked.seed, repeat), run.policy.painter.latent_shape
    images = zip(batch.asked.texts[rows], batch.asked.indices[rows], strict=True)
    return torch.stack([noise(seed, text, index, shape, steps) for text, index in images])


def drawn_until(run: Run, task: Task, asked: Asked, first: int) -> Batch:
    """Latents of what is asked before the step `first`, without a gradient."""
    painter = run.policy.painter
    before = replace(painter, schedule=part(painter.schedule, slice(0, first)))
    latents_BCHW = before.draw(asked.texts, asked.indices, asked.seed).latents_BCHW
    return Batch(task, asked, first, latents_BCHW)


def reward_of(run: Run, task: Task, images_BCHW: Tensor, prompts_B: Sequence[Prompt]) -> Tensor:
    """Weighted sum of a task's terms, as `train.rewards.shape` has it, with a graph: [B], NaN where a term does not apply.

    Raises:
        RewardFailed: where a scorer failed.
    """
    terms = []
    for term in task.rewards:
        with own_stream(run, term.scorer):
            value_B = differentiated(term.scorer, run.scorers[term.scorer], images_BCHW, prompts_B)
        terms.append(term.weight * value_B)
    return torch.stack(terms).sum(0)


def slopes(
    run: Run,
    task: Task,
    latents_BCHW: Tensor,
    prompts_B: Sequence[Prompt],
    loss: Callable[[Tensor], Tensor],
    seen: Callable[[Tensor, slice, int], Tensor] = lambda images_BCHW, rows, view: images_BCHW,
    views: int = 1,
) -> Slopes:
    """A loss of the reward of what latents decode to, and its gradient by the latents, `sampling.decode_batch` pictures at a time, or as many as fit.

    A reward is one of its picture alone, so that the gradient of each view is had by itself, and no view's graph is there beside another's.

    Args:
        run: with the policy.
        task: whose reward.
        latents_BCHW: at most a micro-batch.
        prompts_B: theirs.
        loss: of the reward.
        seen: what the reward is shown of pictures, given of which rows they are and which view this is.
        views: of how many the loss has the mean.

    Raises:
        RewardFailed: where a scorer failed, or its gradient is no number.
    """
    vae, sampling = run.policy.painter.vae, run.experiment.sampling
    kept: Kept = "everything"
    if run.experiment.update.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
        kept = "checkpoints"
    found = []
    asked = sampling.decode_batch or len(latents_BCHW)
    for rows in micro_batches(
        len(latents_BCHW), at_a_time(vae, latents_BCHW, asked, sampling.decoder_precision, kept)
    ):
        leaf_BCHW = latents_BCHW[rows].detach().requires_grad_()
        images_BCHW = pixels(vae, leaf_BCHW, sampling.decoder_precision)
        shown_BCHW = images_BCHW.detach().requires_grad_()
        reward_B, by_image_BCHW = torch.zeros(len(shown_BCHW)).to(shown_BCHW), torch.zeros_like(shown_BCHW)
        for view in range(views):
            view_B = reward_of(run, task, seen(shown_BCHW, rows, view), prompts_B[rows])
            (slope_BCHW,) = torch.autograd.grad(view_B[view_B.isfinite()].sum(), shown_BCHW)
            reward_B = reward_B + view_B.detach() / views
            by_image_BCHW += slope_BCHW / views
        reward_B.requires_grad_()
        loss_B, valid_B = loss(reward_B), reward_B.isfinite()
        (by_reward_B,) = torch.autograd.grad(loss_B[valid_B].sum(), reward_B)
        (slope_BCHW,) = torch.autograd.grad(
            images_BCHW, leaf_BCHW, by_reward_B.view(-1, 1, 1, 1) * by_image_BCHW
        )
        slope_BCHW = slope_BCHW.where(valid_B.view(-1, 1, 1, 1), 0.0)
        number_B = slope_BCHW.flatten(1).isfinite().all(1)
        if not number_B.all():
            prompt = prompts_B[rows][int(number_B.int().argmin())]
            raise RewardFailed(
                f"the reward of task {task.name} has a gradient that is no number, at prompt {prompt.id}"
            )
        found.append((images_BCHW.detach(), reward_B.detach(), loss_B.detach(), slope_BCHW))
    return Slopes(*(torch.cat(values) for values in zip(*found, strict=True)))


def agreed(run: Run, work: Callable[[], Slopes]) -> Slopes:
    """What a process finds, where all of them have found something.

    Raises:
        RewardFailed: on all processes, where the reward failed on one: the others would wait for its gradient.
    """
    failure, found = None, None
    try:
        found = work()
    except RewardFailed as reason:
        failure = reason
    raise_where_any_failed(run, failure)
    assert found is not None
    return found


def scale_gradients(run: Run, factor: float) -> None:
    """Multiply what is accumulated."""
    for weight in run.policy.weights.values():
        if weight.grad is not None:
            weight.grad.mul_(factor)


def compared_with_none(experiment: Experiment, method: Method) -> Experiment:
    """An experiment without what other methods heed, and without groups: no image is compared with another."""
    update = only_heeded(experiment.update, method)
    tasks = tuple(
        replace(task, baseline="batch", images_per_prompt=1) if task.shaping == "pointwise" else task
        for task in experiment.tasks
    )
    return replace(experiment, update=update, tasks=tasks, method=method)


def with_batch_per_gpu(experiment: Experiment, images: int) -> Experiment:
    """Batches as where a GPU has so many images of each in place of the 16 that the paper's method has (Table 6); those of sets, which no relative trains on, as they are."""
    tasks = tuple(
        replace(task, batch=task.batch * images // 16) if task.shaping == "pointwise" else task
        for task in experiment.tasks
    )
    update = replace(experiment.update, micro_batch=min(images, experiment.update.micro_batch))
    # memory only: of the decoder's and the reward's activations, with a gradient and in float32, those of one picture at a time (results/bench/activations.json)
    sampling = replace(experiment.sampling, decode_batch=1)
    return replace(experiment, tasks=tasks, update=update, sampling=sampling)
