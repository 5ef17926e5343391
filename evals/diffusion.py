"""One denoising transition, one noise, one sampler: training and evaluation both draw with this file.

Shapes: `B` images, `T` kept denoising steps, `C H W` latent, `L D` text tokens and width. Latents are float32.

The transition is DDIM's (arXiv 2010.02502, eq. 12 and 16) with the conventions of `diffusers.DDIMScheduler.step`, to which it is
tested equal. Rollout and update call the same functions, and a log-probability is taken of the value that is stored.

Randomness belongs to the sample: the initial latent and the noise of every step of image i come from a generator of its own,
seeded by (seed, prompt text, image index), and every call of the denoiser has the same shape (`evals.arithmetic`). Image i is therefore
the same bit for bit in any batch, order or number of processes; between two micro-batch sizes it agrees within float32 rounding.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from evals import decoder
from evals.arithmetic import Precision, arithmetic, micro_batches, padded
from evals.conditioning import Conditioning, PromptEncoder, latent_shape
from evals.decoder import DecoderPrecision

Reduction = Literal["mean", "sum"]

SEED_BITS = 63  # what torch.Generator.manual_seed takes without wrapping


@dataclass(frozen=True)
class Sampling:
    """How a picture is drawn. One object serves rollout, update and evaluation, so that they cannot differ."""

    steps: int = 50
    """Denoising steps (paper, sec. 4: DDIM 50 in training and inference)."""
    eta: float = 1.0
    """DDIM's share of noise: 0 is deterministic, 1 is DDPM's posterior (released config: 1.0)."""
    guidance: float | None = 7.0
    """Classifier-free guidance weight (paper: 7.0); 1 or None leaves the unconditional branch out."""
    micro_batch: int = 16
    """Images the denoiser and decoder hold at a time: memory only, results agree within float32 rounding (paper: 16 per GPU)."""
    precision: Precision = "fp32"
    """Arithmetic of the denoiser's matrix products. Weights, latents, transition and log-probability are float32 in all of them."""
    decode_batch: int | None = None
    """Images that the decoder holds at a time, None for as many as the denoiser, and never more than fit (`evals.decoder.at_a_time`): memory only, as `micro_batch` (ours)."""
    decoder_precision: DecoderPrecision = "fp32"
    """Arithmetic of the decoder's convolutions and matrix products (ours): float32, TF32 (float32 with 10 bits of mantissa, on NVIDIA's GPUs from Ampere on), or
    bf16; its weights stay float32. fp16 is no choice: SDXL's decoder overflows in it."""

    def __post_init__(self) -> None:
        """Raise ValueError naming the field that cannot be."""
        if self.steps < 1:
            raise ValueError(f"sampling.steps is {self.steps}, but at least 1 denoising step is needed")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"sampling.eta is {self.eta}, but DDIM's noise share lies in [0, 1]")
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance > 0):
            raise ValueError(f"sampling.guidance is {self.guidance}, but it must be positive, or none")
        for name, size in (("micro_batch", self.micro_batch), ("decode_batch", self.decode_batch)):
            if size is not None and size < 1:
                raise ValueError(f"sampling.{name} is {size}, but at least 1 image is needed")
        if self.decoder_precision not in (choices := get_args(DecoderPrecision)):
            raise ValueError(
                f"sampling.decoder_precision is {self.decoder_precision}, but it must be one of {', '.join(choices)}"
            )

    def __repr__(self) -> str:
        """What a picture depends on, by which kept ones are known.

        Left out are `decode_batch`, unless the decoder is in bf16, whose rounding is grey levels, and `decoder_precision` where it is fp32, as all were before it
        could be chosen.
        """
        of_decoder = {
            "fp32": {"decode_batch", "decoder_precision"},
            "tf32": {"decode_batch"},
            "bf16": set[str](),
        }
        left_out = of_decoder[self.decoder_precision]
        told = [
            f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.name not in left_out
        ]
        return f"{type(self).__qualname__}({', '.join(told)})"

    @property
    def guided(self) -> bool:
        """Whether the unconditional branch is evaluated, which doubles the cost."""
        return self.guidance is not None and self.guidance != 1.0

    @property
    def branches(self) -> int:
        """Denoiser evaluations of one latent at one step: the conditional branch, and the unconditional one where guided."""
        return 2 if self.guided else 1


# --------------------------------------------------------------------------------------------------------------- schedule


@dataclass(frozen=True)
class Schedule:
    """The numbers of a DDIM sampler with T steps; step index 0 is the noisiest, T - 1 the last."""

    timesteps: tuple[int, ...]
    """Training timestep of each step, descending."""
    alpha: tuple[float, ...]
    """Cumulative alpha at each step (alpha-bar_t)."""
    alpha_prev: tuple[float, ...]
    """Cumulative alpha that each step leads to (alpha-bar_{t-1}); the last is the scheduler's final alpha."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    """What the denoiser predicts."""
    clip_range: float | None
    """Bound on the predicted x_0 where the scheduler clips it (pixel models), else None."""
    train_alpha: tuple[float, ...]
    """Cumulative alpha of every training timestep, for adding noise."""

    @classmethod
    def of(cls, scheduler: Any, steps: int) -> Schedule:
        """Read the numbers of `steps` DDIM steps from a diffusers scheduler's config, leaving the scheduler as it is.

        A config of another class (SD1.5 ships PNDM's, SDXL Euler's) may lack DDIM's keys: then nothing is clipped and the final alpha is
        that of timestep 0, as those models were trained, not DDIM's defaults, which would clip latents.

        Raises:
            ValueError: for thresholding, more steps than training timesteps, or a noise prediction at zero signal.
        """
        from diffusers import DDIMScheduler  # here: a table is told how a suite draws, and draws nothing

        config = {"clip_sample": False, "set_alpha_to_one": False, **dict(scheduler.config)}
        ddim = DDIMScheduler.from_config({k: v for k, v in config.items() if k != "_class_name"})
        if ddim.config.thresholding:
            raise ValueError(
                "the scheduler uses dynamic thresholding, which has no Gaussian transition: switch it off"
            )
        train_steps = int(ddim.config.num_train_timesteps)
        if steps > train_steps:
            raise ValueError(
                f"sampling.steps is {steps}, but the scheduler was trained with {train_steps} timesteps"
            )
        ddim.set_timesteps(steps)
        timesteps = [int(t) for t in ddim.timesteps]
        table = [float(a) for a in ddim.alphas_cumprod]
        final = float(ddim.final_alpha_cumprod)
        previous = [
            t - train_steps // steps for t in timesteps
        ]  # DDIMScheduler.step's rule, for every spacing
        alpha = tuple(table[t] for t in timesteps)
        if min(alpha) <= 0.0 and ddim.config.prediction_type == "epsilon":
            raise ValueError(
                "the scheduler reaches zero signal, where predicted noise says nothing: use v_prediction"
            )
        return cls(
            timesteps=tuple(timesteps),
            alpha=alpha,
            alpha_prev=tuple(table[p] if p >= 0 else final for p in previous),
            prediction_type=ddim.config.prediction_type,
            clip_range=float(ddim.config.clip_sample_range) if ddim.config.clip_sample else None,
            train_alpha=tuple(table),
        )

    def __len__(self) -> int:
        return len(self.timesteps)

    def sigma(self, step: int, eta: float) -> float:
        """Standard deviation of the transition (arXiv 2010.02502, eq. 16); 0 where a schedule's last step is deterministic."""
        a, a_prev = self.alpha[step], self.alpha_prev[step]
        variance = (1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev) if a < 1.0 else 0.0
        return eta * math.sqrt(max(variance, 0.0))

    def stochastic_steps(self, eta: float) -> tuple[int, ...]:
        """The steps that have a density: those with sigma above 0."""
        return tuple(i for i in range(len(self)) if self.sigma(i, eta) > 0.0)

    def gradient_scale(self, step: int, eta: float) -> float:
        """kappa_t = |d mean / d model output| / sigma_t, the scale of a log-probability's gradient at this step.

        The score of a Gaussian is (x - mean) / sigma^2 = noise / sigma, and reaches the denoiser through d mean / d output. Near the
        end sigma vanishes faster than that derivative, so one step dwarfs the others where nothing is done about it: the
        last but one where timesteps are 1, 101, 201, ... (SD), the last where they are 99, 199, ... (trailing).

        Raises:
            ValueError: at a deterministic step, which has no log-probability.
        """
        sigma = self.sigma(step, eta)
        if sigma == 0.0:
            raise ValueError(_deterministic(self, step, eta))
        return abs(self._output_coefficient(step, eta)) / sigma

    def _output_coefficient(self, step: int, eta: float) -> float:
        """D mean / d model output, without clipping."""
        a, a_prev = self.alpha[step], self.alpha_prev[step]
        noise, direction = math.sqrt(1.0 - a), self.direction(step, eta)
        if self.prediction_type == "epsilon":
            return direction - math.sqrt(a_prev) * noise / math.sqrt(a)
        if self.prediction_type == "v_prediction":
            return direction * math.sqrt(a) - math.sqrt(a_prev) * noise
        return math.sqrt(a_prev) - direction * math.sqrt(a) / noise

    def direction(self, step: int, eta: float) -> float:
        """Coefficient of the predicted noise in the mean, sqrt(1 - alpha-bar_{t-1} - sigma^2); rounding cannot make it NaN."""
        return math.sqrt(max(1.0 - self.alpha_prev[step] - self.sigma(step, eta) ** 2, 0.0))


def _deterministic(schedule: Schedule, step: int, eta: float) -> str:
    cause = (
        "sampling.eta is 0"
        if eta == 0.0
        else f"this schedule ends without noise at timestep {schedule.timesteps[step]}"
    )
    return (
        f"step {step} of {len(schedule)} is deterministic ({cause}), so it has no log-probability to train on"
    )


def transition(
    schedule: Schedule, x_BCHW: Tensor, output_BCHW: Tensor, step: int, eta: float
) -> tuple[Tensor, float]:
    """Mean and standard deviation of p(x_{t-1} | x_t) (arXiv 2010.02502, eq. 12), in float32.

    Args:
        schedule: the sampler's numbers.
        x_BCHW: latent before the step.
        output_BCHW: the denoiser's output at it, guidance included.
        step: step index, 0 the noisiest.
        eta: share of noise.

    Returns:
        mean_BCHW float32, and sigma, one number for all images and dimensions.
    """
    x, output = x_BCHW.float(), output_BCHW.float()
    a = schedule.alpha[step]
    signal, noise = math.sqrt(a), math.sqrt(1.0 - a)
    if schedule.prediction_type == "epsilon":
        original, epsilon = (x - noise * output) / signal, output
    elif schedule.prediction_type == "v_prediction":
        original, epsilon = signal * x - noise * output, signal * output + noise * x
    else:
        original, epsilon = output, (x - signal * output) / noise
    if schedule.clip_range is not None:
        original = original.clamp(-schedule.clip_range, schedule.clip_range)
    mean = math.sqrt(schedule.alpha_prev[step]) * original + schedule.direction(step, eta) * epsilon
    return mean, schedule.sigma(step, eta)


def log_prob(x_BCHW: Tensor, mean_BCHW: Tensor, sigma: float, reduction: Reduction = "mean") -> Tensor:
    """Gaussian log density of each x, averaged over C, H, W as the paper's release does: not a log density, hence its clip of 1e-4.

    Args:
        x_BCHW: the stored latent.
        mean_BCHW: mean of the transition.
        sigma: its standard deviation, above 0.
        reduction: "mean" over dimensions (released code), or "sum", the true log density.

    Returns:
        logp_B float32.

    Raises:
        ValueError: where sigma is 0 (eta 0, or a schedule that ends without noise).
    """
    if sigma <= 0.0:
        raise ValueError(
            "a deterministic transition (sigma 0) has no log-probability: train with sampling.eta above 0"
        )
    per_dimension = (
        -((x_BCHW.float() - mean_BCHW) ** 2) / (2 * sigma**2) - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    )
    flat = per_dimension.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)


def gaussian_kl(mean_BCHW: Tensor, old_mean_BCHW: Tensor, sigma: float) -> Tensor:
    """Exact KL divergence in nats between two transitions of equal sigma, summed over C, H, W: |mean - old mean|^2 / (2 sigma^2)."""
    return ((mean_BCHW - old_mean_BCHW).flatten(1).double() ** 2).sum(1).float() / (2 * sigma**2)


def add_noise(schedule: Schedule, x0_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
    """z_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise, at training timesteps."""
    alpha_B = torch.tensor(schedule.train_alpha, dtype=torch.float64)[timestep_B.cpu()].to(x0_BCHW)
    alpha_B111 = alpha_B.view(-1, 1, 1, 1)
    return alpha_B111.sqrt() * x0_BCHW + (1 - alpha_B111).sqrt() * noise_BCHW


def denoising_target(schedule: Schedule, x0_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
    """What the denoiser should have predicted at z_t: the noise, v = sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) x_0, or x_0."""
    if schedule.prediction_type == "epsilon":
        return noise_BCHW
    if schedule.prediction_type == "sample":
        return x0_BCHW
    return add_noise(schedule, noise_BCHW, -x0_BCHW, timestep_B)


# ------------------------------------------------------------------------------------------------------------------ noise


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from parts: sha256 of their JSON, so that no two lists of parts read the same."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> (64 - SEED_BITS)


def noise(seed: int, prompt_text: str, image_index: int, shape: Sequence[int], steps: int) -> Tensor:
    """The noise of one image: its initial latent, then that of each of `steps` transitions.

    The initial latent does not depend on `steps`, so the same picture can be drawn with another number of steps, or with eta 0
    and steps = 0.

    Args:
        seed: of the run or evaluation.
        prompt_text: the prompt.
        image_index: which image of that prompt.
        shape: (C, H, W) of the latent.
        steps: transitions that need noise.

    Returns:
        float32 CPU tensor [1 + steps, C, H, W].
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, prompt_text, image_index))
    noise_NCHW = torch.empty((1 + steps, *shape))
    noise_NCHW[0].normal_(generator=generator)
    if steps:
        noise_NCHW[1:].normal_(generator=generator)
    return noise_NCHW


# --------------------------------------------------------------------------------------------------------------- denoiser


def predict(
    unet: nn.Module,
    x_BCHW: Tensor,
    timestep: int | Tensor,
    cond: Conditioning,
    uncond: Conditioning | None,
    guidance: float | None,
    precision: Precision = "fp32",
) -> Tensor:
    """The policy's output: uncond + w (cond - uncond), both branches through the denoiser in one call (released code, `train_cfg`).

    Args:
        unet: a `UNet2DConditionModel`, or a wrapper with its signature.
        x_BCHW: latents.
        timestep: one training timestep, or one per image [B].
        cond: of B prompts.
        uncond: of the empty prompt, one row; may be None where guidance is 1 or None.
        guidance: weight w; 1 or None evaluates the conditional branch only.
        precision: of the matrix products.

    Returns:
        output_BCHW float32.
    """
    with arithmetic(precision, x_BCHW.device):
        if guidance is None or guidance == 1.0:
            return _forward(unet, x_BCHW, timestep, cond)
        assert uncond is not None, "guidance needs the embedding of the empty prompt"
        columns = zip(uncond.columns(), cond.columns(), strict=True)
        both = Conditioning(*(torch.cat([empty.expand_as(given), given]) for empty, given in columns))
        twice = timestep if isinstance(timestep, int) else torch.cat([timestep, timestep])
        without, with_text = _forward(unet, torch.cat([x_BCHW, x_BCHW]), twice, both).chunk(2)
    return without + guidance * (with_text - without)


def _forward(unet: nn.Module, x_BCHW: Tensor, timestep: int | Tensor, cond: Conditioning) -> Tensor:
    if isinstance(
        timestep, int
    ):  # a tensor, and latents in one layout: a compiled denoiser is compiled for each number and layout
        timestep = torch.full((len(x_BCHW),), timestep, device=x_BCHW.device)
    x_BCHW = x_BCHW.contiguous()
    more: dict[str, Any] = {}
    if cond.pooled_BD is not None:
        more["added_cond_kwargs"] = {"text_embeds": cond.pooled_BD, "time_ids": cond.size_BK}
    output: Tensor = unet(x_BCHW, timestep, encoder_hidden_states=cond.text_BLD, return_dict=False, **more)[0]
    return output.float()


# ---------------------------------------------------------------------------------------------------------------- sampler


@dataclass(frozen=True)
class Trajectory:
    """What was drawn: final latents, and of the kept steps everything that an update needs. CPU float32."""

    latents_BCHW: Tensor
    """Final latents."""
    steps: tuple[int, ...]
    """Indices of the kept steps, in order of sampling."""
    x_BTCHW: Tensor
    """Latent before each kept step."""
    next_BTCHW: Tensor
    """Latent after it, the action."""
    mean_BTCHW: Tensor
    """Mean of the policy that drew it."""
    logp_BT: Tensor
    """Its log-probability of the action, under the reduction asked for."""

    def part(self, rows: slice, kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Some images at one kept step: latent before, after, mean and log-probability."""
        x, after, mean = (whole[rows, kept] for whole in (self.x_BTCHW, self.next_BTCHW, self.mean_BTCHW))
        return x, after, mean, self.logp_BT[rows, kept]


@torch.no_grad()
def sample(
    unet: nn.Module,
    schedule: Schedule,
    cond: Conditioning,
    uncond: Conditioning | None,
    noise_of: Callable[[slice], Tensor],
    sampling: Sampling,
    keep: Sequence[int] = (),
    reduction: Reduction = "mean",
    noisy: Sequence[int] | None = None,
) -> Trajectory:
    """Draw latents from noise, one transition per step.

    Args:
        unet: the denoiser.
        schedule: `Schedule.of(scheduler, sampling.steps)`.
        cond: of B prompts.
        uncond: of the empty prompt, or None without guidance.
        noise_of: rows to their noise [rows, N, C, H, W], each from `noise`: initial latent and, where eta is above 0, one
            per step. It is asked for a micro-batch at a time: fifty steps of noise are much larger than a latent.
        sampling: how to draw.
        keep: step indices whose transition is stored.
        reduction: of the stored log-probability.
        noisy: steps with `sampling.eta`, the others have eta 0; None for all.

    Returns:
        the trajectory, on the CPU.

    Raises:
        ValueError: when a kept step is deterministic.
    """
    kept = tuple(sorted(keep))
    for step in kept:
        assert noisy is None or step in noisy, "a step without noise has no density to keep"
        if schedule.sigma(step, sampling.eta) == 0.0:
            raise ValueError(_deterministic(schedule, step, sampling.eta))
    eta_T = [sampling.eta if noisy is None or step in noisy else 0.0 for step in range(len(schedule))]
    parts: list[tuple[Tensor, ...]] = []
    for rows in micro_batches(len(cond.text_BLD), sampling.micro_batch):
        drawn = padded(
            lambda noise_, *columns: _denoise(
                unet, schedule, Conditioning(*columns), uncond, noise_, sampling, eta_T, kept, reduction
            ),
            sampling.micro_batch,
            noise_of(rows),
            *cond.part(rows).columns(),
        )
        parts.append(tuple(values[: rows.stop - rows.start].cpu() for values in drawn))
    latents, x, after, mean, logp = (torch.cat(values) for values in zip(*parts, strict=True))
    return Trajectory(latents, kept, x, after, mean, logp)


def _denoise(
    unet: nn.Module,
    schedule: Schedule,
    cond: Conditioning,
    uncond: Conditioning | None,
    noise_BNCHW: Tensor,
    sampling: Sampling,
    eta_T: Sequence[float],
    kept: tuple[int, ...],
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One micro-batch of `sample`: final latents and, of the kept steps, latent before, after, mean and log-probability."""
    device = cond.text_BLD.device
    noise_BNCHW = noise_BNCHW.to(device)  # at once: a copy waits until the device has done what it was given
    x_BCHW = noise_BNCHW[:, 0]
    stored: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for step, timestep in enumerate(schedule.timesteps):
        output = predict(unet, x_BCHW, timestep, cond, uncond, sampling.guidance, sampling.precision)
        mean, sigma = transition(schedule, x_BCHW, output, step, eta_T[step])
        next_BCHW = mean + sigma * noise_BNCHW[:, 1 + step] if sigma > 0.0 else mean
        if step in kept:
            stored.append((x_BCHW, next_BCHW, mean, log_prob(next_BCHW, mean, sigma, reduction)))
        x_BCHW = next_BCHW
    if not stored:
        empty = x_BCHW.new_empty(len(x_BCHW), 0, *x_BCHW.shape[1:])
        return x_BCHW, empty, empty, empty, empty.flatten(2).sum(2)
    x, after, mean, logp = (torch.stack(values, 1) for values in zip(*stored, strict=True))
    return x_BCHW, x, after, mean, logp


@dataclass
class Painter:
    """A pipeline's parts as this project draws with them: texts and image indices in, trajectory or images out."""

    unet: nn.Module
    vae: Any
    encoder: PromptEncoder
    schedule: Schedule
    sampling: Sampling

    @classmethod
    def of(cls, pipeline: Any, sampling: Sampling) -> Painter:
        """Take the parts of a `StableDiffusionPipeline` or a `StableDiffusionXLPipeline`, where they are.

        Raises:
            ValueError: see `evals.decoder.check`.
        """
        decoder.check(sampling.decoder_precision, pipeline.vae.device)
        return cls(
            unet=pipeline.unet,
            vae=pipeline.vae,
            encoder=PromptEncoder.of(pipeline),
            schedule=Schedule.of(pipeline.scheduler, sampling.steps),
            sampling=sampling,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        return latent_shape(self.unet)

    def unconditional(self) -> Conditioning | None:
        """Of the empty prompt, where guidance needs it."""
        return self.encoder.unconditional() if self.sampling.guided else None

    def draw(
        self,
        texts: Sequence[str],
        image_indices: Sequence[int],
        seed: int,
        keep: Sequence[int] = (),
        reduction: Reduction = "mean",
        noisy: Sequence[int] | None = None,
    ) -> Trajectory:
        """Draw one latent per (text, image index); see `sample`."""
        steps = len(self.schedule) if self.sampling.eta > 0.0 else 0
        images = list(zip(texts, image_indices, strict=True))

        def noise_of(rows: slice) -> Tensor:
            return torch.stack(
                [noise(seed, text, index, self.latent_shape, steps) for text, index in images[rows]]
            )

        return sample(
            self.unet,
            self.schedule,
            self.encoder(texts),
            self.unconditional(),
            noise_of,
            self.sampling,
            keep,
            reduction,
            noisy,
        )

    def paint(self, texts: Sequence[str], image_indices: Sequence[int], seed: int) -> Tensor:
        """Images [B, 3, H, W] float32 in [0, 1] on the CPU, one per (text, image index)."""
        return self.decode(self.draw(texts, image_indices, seed).latents_BCHW)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """See `evals.decoder.decode`."""
        sampling = self.sampling
        at_once = sampling.decode_batch or sampling.micro_batch
        return decoder.decode(self.vae, latents_BCHW, at_once, sampling.decoder_precision)
