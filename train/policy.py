"""The model that is trained: a pipeline in diffusers layout in, full UNet or LoRA, AdamW, EMA, and the same layout out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from evals.checkpoints import first_line
from evals.conditioning import text_encoders
from evals.diffusion import Painter, derive_seed
from evals.files import disk_errors
from train.config import Ema, Experiment, Lora, Update


class AveragedWeights:
    """EMA: average <- decay * average + (1 - decay) * weights, once per optimiser step."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.average = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def step(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights after an optimiser step into the average."""
        torch._foreach_lerp_(
            list(self.average.values()), [weights[name] for name in self.average], 1 - self.decay
        )


class Policy:
    """The denoiser under training, with its optimiser.

    `unet` is the module itself, which samples; `module` is what accelerate made of it (DDP on several processes), through which
    every forward that is differentiated goes, as only that one averages gradients.
    """

    def __init__(self, pipeline: Any, experiment: Experiment, accelerator: Accelerator, seed: int) -> None:
        self.pipeline = pipeline
        self.accelerator = accelerator
        self.update = experiment.update
        self.steps_in_all = experiment.optimiser_steps
        for frozen in (pipeline.vae, *text_encoders(pipeline)):
            frozen.requires_grad_(False).eval().to(accelerator.device)
        self.unet: Any = pipeline.unet
        self.unet.requires_grad_(experiment.lora is None)
        if experiment.lora is not None:
            _add_adapters(self.unet, experiment.lora, seed)
        if experiment.update.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.lora = experiment.lora
        self.unet.eval().to(accelerator.device)  # no dropout: rollout and update must be the same function
        self.weights = {name: p for name, p in self.unet.named_parameters() if p.requires_grad}
        self.module: nn.Module = accelerator.prepare(self.unet) if experiment.tasks else self.unet
        self.optimiser = torch.optim.AdamW(
            self.weights.values(),
            lr=self.update.lr,
            betas=self.update.betas,
            eps=self.update.adam_eps,
            weight_decay=self.update.weight_decay,
            fused=True,  # one pass over the weights instead of ten
        )
        self.ema = _averaged(self.weights, experiment.ema)
        self.painter = Painter.of(pipeline, experiment.sampling)

    def optimiser_step(self) -> Tensor:
        """One AdamW step on the gradients there are, then forget them.

        Returns:
            their norm before any bound, a scalar tensor on the device.
        """
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.update.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.weights.values(), self.update.max_grad_norm, norm)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.update, self.steps_taken, self.steps_in_all)
        self.optimiser.step()
        self.forget_gradients()
        if self.ema is not None:
            self.ema.step(self.weights)
        return norm.detach()

    def forget_gradients(self) -> None:
        """Free what was accumulated."""
        self.optimiser.zero_grad(set_to_none=True)

    @property
    def steps_taken(self) -> int:
        """Optimiser steps so far, as AdamW counts them: it is part of the saved state."""
        first = next(iter(self.optimiser.state.values()), None)
        return int(first["step"]) if first else 0

    # ------------------------------------------------------------------------------------------------------ state and saving

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that training changes, as named tensors per file: weights, AdamW's moments, EMA."""
        moments = {
            f"{name}|{key}": value
            for name, p in self.weights.items()
            for key, value in self.optimiser.state[p].items()
        }
        files = {"weights": dict(self.weights), "optimiser": moments}
        if self.ema is not None:
            files["ema"] = self.ema.average
        return {
            file: {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            for file, tensors in files.items()
        }

    @torch.no_grad()
    def load_state(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore `state`.

        Raises:
            ValueError: where the tensors are not those of this model.
        """
        _copy(files["weights"], self.weights, "weights")
        if self.ema is not None:
            _copy(files["ema"], self.ema.average, "ema")
        for key, value in files["optimiser"].items():
            name, _, moment = key.rpartition("|")
            if name not in self.weights:
                raise ValueError(f"the stored optimiser has a parameter {name} that this model has not")
            self.optimiser.state[self.weights[name]][moment] = value.to(self.accelerator.device, copy=True)

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """The averaged weights in place of the live ones, where there is an average, and the live ones back afterwards."""
        if self.ema is None:
            yield
            return
        live = {name: weight.detach().clone() for name, weight in self.weights.items()}
        try:
            with torch.no_grad():
                _copy(self.ema.average, self.weights, "ema")
            yield
        finally:
            with torch.no_grad():
                _copy(live, self.weights, "weights")

    def save(self, folder: Path) -> None:
        """Write what diffusers opens without this project: the whole pipeline, or `pytorch_lora_weights.safetensors`.

        Raises:
            OSError: where the disk refuses.
        """
        with self.handed_over(), disk_errors():
            if self.lora is None:
                self.pipeline.save_pretrained(folder, safe_serialization=True)
            else:
                type(self.pipeline).save_lora_weights(folder, unet_lora_layers=self._adapters())

    def _adapters(self) -> dict[str, Tensor]:
        """The LoRA's tensors by diffusers' names."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        adapters = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
        return {name: tensor.cpu().contiguous() for name, tensor in adapters.items()}


def learning_rate(update: Update, taken: int, in_all: int) -> float:
    """AdamW's rate at the optimiser step that comes after `taken` others: rises over the warm-up, then stays or falls to 0."""
    rise = min(1.0, (taken + 1) / update.warmup) if update.warmup else 1.0
    fall = 1.0 - taken / in_all if update.decay == "linear" else 1.0
    return update.lr * min(rise, fall)


def _averaged(weights: Mapping[str, Tensor], ema: Ema | None) -> AveragedWeights | None:
    return AveragedWeights(weights, ema.decay) if ema is not None else None


def _add_adapters(unet: Any, lora: Lora, seed: int) -> None:
    """Insert LoRA adapters, drawn from the run's seed, the same on every process; their product starts at zero."""
    from peft import LoraConfig

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        init_lora_weights="gaussian",
        target_modules=list(lora.targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("lora", seed))
        try:
            unet.add_adapter(config)
        except ValueError as error:
            raise ValueError(f"lora.targets: {first_line(error)}") from None


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors by name in place.

    Raises:
        ValueError: for other names or shapes.
    """
    if source.keys() != target.keys():
        strange = sorted(source.keys() ^ target.keys())
        raise ValueError(
            f"the stored {what} are those of another model: {len(strange)} names differ, such as {strange[0]}"
        )
    for name, tensor in target.items():
        if source[name].shape != tensor.shape:
            raise ValueError(f"the stored {what} are those of another model: {name} has another shape")
        tensor.copy_(source[name])
