"""What every run checks about itself, and stops where it does not hold.

Before the first optimiser step of an iteration the policy is the one that sampled: every ratio is 1 and every KL is 0. If they are not,
rollout and update are different functions, and what follows optimises that difference. Transition and log-probability are
compared with diffusers' scheduler and torch's normal distribution at the run's own schedule, an image drawn alone with the same one drawn in a
batch (its noise, and every transition of it: whole trajectories part from one another by rounding alone), and the gradient of a batch with that of
its two halves.

How far a ratio of 1 may be off by rounding follows from the precision, the guidance, the schedule and the size of a latent: `Rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler

from evals.arithmetic import Precision
from evals.diffusion import Reduction, Sampling, Schedule, log_prob, transition


class GateBroken(Exception):
    """An identity that training rests on does not hold; the message is one sentence."""


class Diverged(Exception):
    """The policy answers with what is no number; the message is one sentence."""


ROUNDOFF: dict[Precision, float] = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
"""Unit roundoff: largest relative error of rounding a number to nearest."""
ROUNDOFFS = 8.0
"""How many roundoffs every bound here allows. Measured on a CPU, the worst step and image of a run: 0.9 to 2.5 in float32 between two sizes of
batch, 0.7 to 1.5 in bf16 and fp16 against float32 (tiny pipelines, the miniature; tests/test_precision.py); of the output of Stable Diffusion
1.5's architecture with random weights 1.7 and 3.3."""
STRANDS = 16.0
"""A sum of K terms is off by about sqrt(K) roundoffs where it is taken term by term (Higham and Mary, 2019), and by this
many times less as kernels take it, in lanes and blocks."""
DEVIATIONS = 5.0
"""Standard deviations of the noise in an averaged log-ratio that a bound allows: one image in two million is beyond."""


@dataclass(frozen=True)
class Tolerance:
    """What rounding may do to an identity at one step."""

    ratio: float
    """Largest |ratio - 1|."""
    kl: float
    """Largest KL, in nats, of an image."""


def output_error(precision: Precision, longest_sum: int) -> float:
    """Relative error of a denoiser's output, rms over an image: every result is rounded, and every sum is one of float32 roundings.

    Args:
        precision: of the matrix products; their sums are float32 in all of them.
        longest_sum: terms of the longest sum in a matrix product or convolution.
    """
    return ROUNDOFFS * (ROUNDOFF[precision] + math.sqrt(longest_sum) / STRANDS * ROUNDOFF["fp32"])


def mean_error(schedule: Schedule, step: int, sampling: Sampling, longest_sum: int) -> float:
    """k_t: how far rounding moves a transition's mean, rms over dimensions, in units of sigma_t.

    The denoiser's error reaches the mean by kappa_t sigma_t, of an output of unit variance; the errors of guidance's two branches are added with
    their weights w and w - 1, as independent ones. The mean itself, of unit scale, is float32 in every precision.
    """
    of_output = schedule.gradient_scale(step, sampling.eta) * _of_branches(sampling)
    of_mean = ROUNDOFFS * ROUNDOFF["fp32"] / schedule.sigma(step, sampling.eta)
    return of_output * output_error(sampling.precision, longest_sum) + of_mean


def gradient_error(sampling: Sampling, longest_sum: int) -> float:
    """Relative error of a weight's gradient, rms over its entries: what rounds the output rounds the way back as well.

    With guidance w the gradient is w times one branch's less w - 1 times the other's, which are much alike: their errors stay, and are as many times
    what is left.
    """
    return 2 * output_error(sampling.precision, longest_sum) * _of_branches(sampling)


def _of_branches(sampling: Sampling) -> float:
    """What guidance makes of an error of each branch, independent of the other's."""
    w = sampling.guidance if sampling.guided and sampling.guidance is not None else 1.0
    return math.hypot(w, w - 1.0)


def log_ratio_error(k: float, dims: int, sigma: float) -> float:
    """Largest error of an averaged log-ratio, where the mean is off by k sigma.

    With x = mean + sigma z the log-ratio is mean(z d) - k^2 / 2 for an error d of rms k that was made before z was drawn: a normal variable of
    standard deviation k / sqrt(dims). The average of the log-densities, about 1.5 + |log sigma| large, is itself rounded.
    """
    rounded = ROUNDOFFS * ROUNDOFF["fp32"] * (1.5 + abs(math.log(sigma)))
    return DEVIATIONS * k / math.sqrt(dims) + k * k / 2 + rounded


def largest_mean_error(log_ratio: float, dims: int, sigma: float) -> float:
    """The k at which `log_ratio_error` is so much; 0 where rounding the log-densities alone is more."""
    room = log_ratio - log_ratio_error(0.0, dims, sigma)
    spread = DEVIATIONS / math.sqrt(dims)
    return math.sqrt(spread * spread + 2 * room) - spread if room > 0.0 else 0.0


@dataclass(frozen=True)
class Rounding:
    """How far rollout and update, which are one function, may be apart by rounding, in a run.

    A bound on what rounding does, and never more than half of the clip: the clip cannot tell a policy that has moved so far from one that has not.
    """

    schedule: Schedule
    sampling: Sampling
    reduction: Reduction
    clip: float
    """Epsilon of Eq 7."""
    dims: int
    """Dimensions of a latent."""
    longest_sum: int
    """See `output_error`."""
    same_kernels: bool
    """Whether the denoiser runs on batches of one size in both."""
    on_cpu: bool
    """Whether equal shapes mean equal results to the last bit."""

    @property
    def exact(self) -> bool:
        """Whether there is nothing to round differently: ratio 1 and KL 0 are demanded to the last bit."""
        return self.same_kernels and self.on_cpu

    def ratio_error(self, step: int) -> float:
        """Largest |ratio - 1| that rounding may cause at a step, whatever the clip."""
        k, sigma = mean_error(self.schedule, step, self.sampling, self.longest_sum), self._sigma(step)
        return math.expm1(min(self._summed * log_ratio_error(k, self.dims, sigma), 700.0))

    def mean_error(self, step: int) -> float:
        """How far rounding may move a transition's mean, in sigma_t, whatever the clip."""
        return 0.0 if self.exact else mean_error(self.schedule, step, self.sampling, self.longest_sum)

    def tolerance(self, step: int) -> Tolerance:
        """What is allowed at a step."""
        if self.exact:
            return Tolerance(0.0, 0.0)
        half = self.clip / 2
        k = min(
            mean_error(self.schedule, step, self.sampling, self.longest_sum),
            largest_mean_error(math.log1p(half) / self._summed, self.dims, self._sigma(step)),
        )
        return Tolerance(min(self.ratio_error(step), half), self.dims * k * k / 2)

    def holds(self, steps: Sequence[int]) -> bool:
        """Whether the bound lies within half of the clip at every step."""
        return all(self.ratio_error(step) <= self.clip / 2 for step in steps)

    def note(self, steps: Sequence[int]) -> str:
        """A sentence where rounding may hide what the clip is to bound, with what would not; empty where it cannot.

        Args:
            steps: that can be drawn.
        """
        if self.same_kernels or self.holds(steps):
            return ""
        worst = max(steps, key=self.ratio_error)
        guided = f" at sampling.guidance {self.sampling.guidance:g}" if self.sampling.guided else ""
        return (
            f"sampling.precision {self.sampling.precision} cannot hold update.clip {self.clip:g}{guided}: where rollout and update "
            f"round differently, the ratio may be off 1 by {self.ratio_error(worst):.2g} at timestep {self.schedule.timesteps[worst]}; "
            f"what can: {', '.join(self.ways_out(steps))}"
        )

    def ways_out(self, steps: Sequence[int]) -> list[str]:
        """What would bring rounding within half of the clip at these steps: a finer precision, less guidance, batches of one size, a wider clip."""
        sampling = self.sampling
        finer = [p for p in ROUNDOFF if ROUNDOFF[p] < ROUNDOFF[sampling.precision]]
        found = [
            f"sampling.precision {p}"
            for p in sorted(finer, key=lambda p: -ROUNDOFF[p])
            if replace(self, sampling=replace(sampling, precision=p)).holds(steps)
        ]
        tenths = range(math.ceil(10 * (sampling.guidance or 0)) - 1, 9, -1) if sampling.guided else ()
        weaker = (replace(self, sampling=replace(sampling, guidance=w / 10)) for w in tenths)
        within = next((each.sampling.guidance for each in weaker if each.holds(steps)), None)
        found += [f"sampling.guidance up to {within:g}"] if within is not None else []
        if not self.same_kernels:
            found.append("equal sampling.micro_batch and update.micro_batch")
        return [*found, self.wider(2 * max(map(self.ratio_error, steps)))]

    def wider(self, clip: float) -> str:
        """What `clip` would be set by, with the least value that is wide enough."""
        return f"update.clip from {clip:.2g}"

    @property
    def _summed(self) -> int:
        """Averages that a log-probability is: dims where it is summed."""
        return self.dims if self.reduction == "sum" else 1

    def _sigma(self, step: int) -> float:
        return self.schedule.sigma(step, self.sampling.eta)


TRANSITION_TOLERANCE = 1e-4
NOISE_TOLERANCE = 1e-5
"""Largest difference of a latent that is drawn of noise alone, relative to the largest entry: float32, and each number by itself."""


def check_identity(
    gates: dict[str, Any], step: int, ratio_max_dev: float, kl_max: float, rounding: Rounding
) -> None:
    """Record the identity at one step before an update, and refuse to go on where it is broken.

    Args:
        gates: the run's record; changed in place.
        step: index of the denoising step.
        ratio_max_dev: largest |ratio - 1| over the batch of all processes.
        kl_max: largest KL in nats.
        rounding: what is allowed.

    Raises:
        GateBroken: beyond the tolerance.
        Diverged: where they are no numbers.
    """
    timestep, precision = rounding.schedule.timesteps[step], rounding.sampling.precision
    if not (math.isfinite(ratio_max_dev) and math.isfinite(kl_max)):
        why = " (fp16 ends at 65,504, bf16 does not)" if precision == "fp16" else ""
        raise Diverged(f"the denoiser's answers at timestep {timestep} are no numbers any more{why}")
    allowed = rounding.tolerance(step)
    record = gates.setdefault("identity", {"precision": precision, "updates": 0, "steps": {}})
    record["exact"] = rounding.exact
    record["holds"] = ratio_max_dev <= allowed.ratio and kl_max <= allowed.kl
    if not record["holds"]:
        cause = (
            "rounding does not do that"
            if rounding.exact or rounding.holds([step])
            else f"if it is rounding, what rules it out: {', '.join(rounding.ways_out([step]))}"
        )
        raise GateBroken(
            f"before the first update at timestep {timestep} the ratio is off 1 by {ratio_max_dev:.3g} (allowed "
            f"{allowed.ratio:.3g}) and the KL is {kl_max:.3g} nats (allowed {allowed.kl:.3g}) in {precision}: rollout and "
            f"update are not the same function ({cause})"
        )
    record["updates"] += 1
    worst = record["steps"].setdefault(str(timestep), {"ratio_max_dev": 0.0, "kl_max": 0.0})
    worst["ratio_max_dev"] = max(worst["ratio_max_dev"], ratio_max_dev)
    worst["kl_max"] = max(worst["kl_max"], kl_max)
    worst["ratio_allowed"], worst["kl_allowed"] = allowed.ratio, allowed.kl


def transition_gate(scheduler: Any, schedule: Schedule, eta: float) -> dict[str, float]:
    """Largest difference from `DDIMScheduler.step` and from `torch.distributions.Normal`, over all steps of this run's schedule.

    Raises:
        GateBroken: beyond the tolerance.
    """
    config = {"clip_sample": False, "set_alpha_to_one": False, **dict(scheduler.config)}
    reference = DDIMScheduler.from_config({k: v for k, v in config.items() if k != "_class_name"})
    # in double, where 1 - alpha - sigma^2 is not the root of a rounding error
    reference.alphas_cumprod = reference.alphas_cumprod.double()
    reference.set_timesteps(len(schedule))
    generator = torch.Generator().manual_seed(0)
    step_error = log_prob_error = 0.0
    for step, timestep in enumerate(schedule.timesteps):
        x, output, z = torch.randn(3, 2, 4, 4, 4, generator=generator)
        mean, sigma = transition(schedule, x, output, step, eta)
        after = mean + sigma * z
        theirs = reference.step(output, timestep, x, eta=eta, variance_noise=z).prev_sample
        if (
            not theirs.isnan().any()
        ):  # even in double that root may be of a negative number, at zero terminal signal
            step_error = max(step_error, (after - theirs).abs().max().item())
        if sigma > 0.0:
            density = (
                torch.distributions.Normal(mean.double(), sigma).log_prob(after.double()).mean((1, 2, 3))
            )
            log_prob_error = max(log_prob_error, (log_prob(after, mean, sigma) - density).abs().max().item())
    if not (step_error <= TRANSITION_TOLERANCE and log_prob_error <= TRANSITION_TOLERANCE):
        raise GateBroken(
            f"the transition differs from diffusers' DDIMScheduler by {step_error:.3g}, and its log-probability from "
            f"torch's normal distribution by {log_prob_error:.3g} (allowed {TRANSITION_TOLERANCE:g})"
        )
    return {
        "transition_max_error": step_error,
        "log_prob_max_error": log_prob_error,
        "tolerance": TRANSITION_TOLERANCE,
        "holds": True,
    }


PARTS = {
    "noise": ("the noise of an image drawn alone differs from that of the same one drawn in a batch", ""),
    "image": (
        "an image drawn alone differs from the same one drawn in a batch",
        " standard deviations of a transition",
    ),
    "gradient": ("the gradient of a batch differs from that of its halves", ""),
    "reward": (
        "the reward that is differentiated differs from the scorer's, relative to the largest or 1,",
        "",
    ),
}
"""What is compared, and the unit of the difference."""


def check_part(
    gates: dict[str, Any], name: str, difference: float, allowed: float, precision: Precision
) -> None:
    """Record that a part makes the whole, and refuse to go on where it does not.

    Args:
        gates: the run's record; changed in place.
        name: one of `PARTS`.
        difference: largest there is, in its unit.
        allowed: what rounding may do.
        precision: of the denoiser.

    Raises:
        GateBroken: beyond it.
    """
    holds = difference <= allowed
    gates[name] = {"max_difference": difference, "tolerance": allowed, "holds": holds}
    if not holds:
        meaning, unit = PARTS[name]
        raise GateBroken(f"{meaning} by {difference:.3g}{unit} (allowed {allowed:.3g}) in {precision}")
