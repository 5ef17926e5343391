"""The model that is trained: a pipeline in diffusers layout in, full UNet or LoRA, AdamW, EMA, and the same layout out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from evals.checkpoints import first_line
from evals.conditioning import text_encoders
from evals.diffusion import Painter, derive_seed
from evals.files import as_the_umask_leaves, disk_errors
from train.compiling import compiled
from train.config import Ema, Experiment, Lora, Update
from train.cuda_graphs import Recordings, record_calls
from train.determinism import only_deterministic
from train.frozen_parts import save_frozen
from train.loss_scale import LossScale, first_loss_scale
from train.mixing import turns


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its share where it is shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Where each process holds a share of it, all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_as(like: Tensor, tensor: Tensor) -> Tensor:
    """A tensor as another one lies: on its device, and this process's share where that is one."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor.to(like.device)
    # without a source each process takes its share of what it has
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


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

    `unet` is the module itself, which samples; `module` is what accelerate made of it, through which every forward that is
    differentiated goes: DDP on several processes, as only that one averages gradients. Where weights are shared out (FSDP2) both are
    the same, and `weights`, gradients, moments and average are DTensors; then every process takes part in whatever asks for one whole.
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
        # terms of the longest sum in a matrix product or convolution: what comes into one output
        self.longest_sum = max(p[0].numel() for p in self.unet.parameters() if p.dim() > 1)
        self.optimiser = torch.optim.AdamW(
            self.weights.values(),
            lr=self.update.lr,
            betas=self.update.betas,
            eps=self.update.adam_eps,
            weight_decay=self.update.weight_decay,
            fused=True,  # one pass over the weights instead of ten
        )
        self.module: nn.Module = self._prepared() if experiment.tasks else self.unet
        self.ema = _averaged(self.weights, experiment.ema)
        # the method says when it follows, and how closely
        self.old = AveragedWeights(self.weights, 0.0) if experiment.method.needs_old else None
        self.reference = _on_cpu(self.weights) if experiment.method.needs_reference else None
        self.painter = Painter.of(pipeline, experiment.sampling)
        if self.update.compile and experiment.tasks:
            self.painter.unet = compiled(self.unet, accelerator.device)
        if self.update.cuda_graphs and experiment.tasks:
            gradients = not self.update.gradient_checkpointing and experiment.method.length == 1
            wrapped = self.module is not self.unet
            record_calls(self.unet, pipeline.vae.decoder, Recordings(), gradients, wrapped)
        self.loss_scale: LossScale | None = None
        if experiment.tasks and experiment.sampling.precision == "fp16":
            share = max(task.batch for task in turns(experiment)) // accelerator.num_processes
            dims = math.prod(self.painter.latent_shape)
            averaged = experiment.method.averaged(share)
            self.loss_scale = LossScale(first_loss_scale(dims, averaged, experiment.update.reduction))

    def _prepared(self) -> nn.Module:
        """The denoiser as several processes train it; `weights` become their shares where they are shared out."""
        module: nn.Module
        if not self.accelerator.is_fsdp2:
            module = self.accelerator.prepare(self.unet)
            return module
        module, _ = self.accelerator.prepare(self.unet, self.optimiser)  # the optimiser moves to the shares
        # the root's weights too go after each forward: whole ones that outlive a change of their shares would be old
        self.unet.set_reshard_after_forward(True, recurse=False)
        self.weights = {name: p for name, p in self.unet.named_parameters() if p.requires_grad}
        return module

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient to what is accumulated, scaled in fp16; the same one each time."""
        with only_deterministic(self.accelerator.device):
            self.accelerator.backward(loss if self.loss_scale is None else loss * self.loss_scale.value)

    def gradients_fit(self) -> bool:
        """Whether what is accumulated is the gradient: in fp16 the scale is taken off, or what has overflowed is forgotten, to be taken again.

        Raises:
            Diverged: where it overflows at any scale.
        """
        if self.loss_scale is None:
            return True
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        if not whole(nn.utils.get_total_norm(gradients)).isfinite():
            self.forget_gradients()
            self.loss_scale.overflowed()
            return False
        torch._foreach_mul_(gradients, 1 / self.loss_scale.value)
        self.loss_scale.kept()
        return True

    def optimiser_step(self) -> Tensor:
        """One AdamW step on the gradients there are, then forget them.

        Returns:
            their norm before any bound, a scalar tensor on the device.
        """
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
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
        """Everything that training changes, as named tensors per file: weights, AdamW's moments, EMA, fp16's loss scale.

        Whole and on the CPU of the main process, whatever lies where: a run may be resumed on any number of processes. Nothing on the others.
        """
        moments = {
            f"{name}|{key}": value
            for name, p in self.weights.items()
            for key, value in self.optimiser.state[p].items()
        }
        files = {"weights": dict(self.weights), "optimiser": moments}
        if self.ema is not None:
            files["ema"] = self.ema.average
        if self.old is not None:
            files["old"] = self.old.average
        if self.loss_scale is not None:
            files["loss_scale"] = self.loss_scale.state()
        return {file: self._gathered(tensors) for file, tensors in files.items()}

    def _gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the CPU of the main process, one after the other; nothing on the others, which must ask as well."""
        found = {}
        for name, tensor in tensors.items():
            value = whole(tensor.detach())
            if self.accelerator.is_main_process:
                found[name] = value.cpu().contiguous()
        return found

    @torch.no_grad()
    def load_state(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore `state`.

        Raises:
            ValueError: where the tensors are not those of this model.
        """
        _copy(files["weights"], self.weights, "weights")
        if self.ema is not None:
            _copy(files["ema"], self.ema.average, "ema")
        if self.old is not None:
            _copy(files["old"], self.old.average, "old")
        if self.loss_scale is not None:
            if "loss_scale" not in files:
                raise ValueError("it has no loss_scale.safetensors")
            self.loss_scale.load_state(files["loss_scale"])
        for key, value in files["optimiser"].items():
            name, _, moment = key.rpartition("|")
            if name not in self.weights:
                raise ValueError(f"the stored optimiser has a parameter {name} that this model has not")
            weight = self.weights[name]
            # AdamW also counts its steps: one number, which every process has
            mine = placed_as(weight, value) if value.shape == weight.shape else value.to(weight.device)
            self.optimiser.state[weight][moment] = mine.clone()

    @contextmanager
    def lent(self, other: Mapping[str, Tensor]) -> Iterator[None]:
        """Other weights in place of the live ones, and the live ones back afterwards. On every process.

        Args:
            other: by the names of `weights`, whole or this process's share.
        """
        live = {name: local(weight).detach().clone() for name, weight in self.weights.items()}
        try:
            self._take(other)
            yield
        finally:
            self._take(live)

    @torch.no_grad()
    def _take(self, other: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            local(weight).copy_(local(other[name]))

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """The averaged weights in place of the live ones, where there is an average."""
        if self.ema is None:
            yield
            return
        with self.lent(self.ema.average):
            yield

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The base in place of the policy: adapters as they began, which adds nothing, or the weights that wait on the CPU."""
        assert self.reference is not None, "the method says needs_reference"
        with self.lent(self.reference):
            yield

    @contextmanager
    def as_old(self) -> Iterator[None]:
        """The weights that follow the trained ones in place of these."""
        assert self.old is not None, "the method says needs_old"
        with self.lent(self.old.average):
            yield

    def weights_to_hand_over(self) -> dict[str, Tensor]:
        """The trained weights, averaged where there is an average: whole on the main process, nothing on the others, which must ask as well."""
        return self._gathered(self.weights if self.ema is None else self.ema.average)

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write what diffusers opens without this project: the whole pipeline, or `pytorch_lora_weights.safetensors`.

        Args:
            folder: to write to.
            weights: `weights_to_hand_over`.

        Raises:
            OSError: where the disk refuses.
        """
        if self.lora is not None:
            self.save_trained(folder, weights)
            return
        with disk_errors():
            save_frozen(self.pipeline, folder)
        self.save_trained(folder, weights)

    def save_trained(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Of what `save` writes, what training changes: `unet/`, or `pytorch_lora_weights.safetensors`.

        Raises:
            OSError: where the disk refuses.
        """
        with disk_errors():
            if self.lora is not None:
                type(self.pipeline).save_lora_weights(folder, unet_lora_layers=self._adapters(weights))
            else:
                self._alone(weights).save_pretrained(folder / "unet", safe_serialization=True)
        as_the_umask_leaves(folder)

    def _alone(self, weights: Mapping[str, Tensor]) -> Any:
        """A denoiser of these weights that is no part of any training."""
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(self.unet.config)
        unet.load_state_dict(weights, assign=True)
        return unet.eval()

    def _adapters(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The LoRA's tensors by diffusers' names, with alpha / rank in B: whoever loads tensors alone takes alpha to be the rank."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        assert self.lora is not None
        scale = self.lora.alpha / self.lora.rank
        adapters = get_peft_model_state_dict(self.unet, state_dict=dict(weights))
        scaled = {name: of * scale if "lora_B." in name else of for name, of in adapters.items()}
        found: dict[str, Tensor] = convert_state_dict_to_diffusers(scaled)
        return found


def learning_rate(update: Update, taken: int, in_all: int) -> float:
    """AdamW's rate at the optimiser step that comes after `taken` others: rises over the warm-up, then stays or falls to 0."""
    rise = min(1.0, (taken + 1) / update.warmup) if update.warmup else 1.0
    fall = 1.0 - taken / in_all if update.decay == "linear" else 1.0
    return update.lr * min(rise, fall)


def _averaged(weights: Mapping[str, Tensor], ema: Ema | None) -> AveragedWeights | None:
    return AveragedWeights(weights, ema.decay) if ema is not None else None


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of what this process holds of each weight."""
    return {name: local(weight).detach().to("cpu", copy=True) for name, weight in weights.items()}


def _add_adapters(unet: Any, lora: Lora, seed: int) -> None:
    """Insert LoRA adapters, drawn from the run's seed, the same on every process; their product starts at zero."""
    from peft import LoraConfig

    there = [name for name, _ in unet.named_modules()]
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in there):
            raise ValueError(f"lora.targets: the denoiser has no module {target}")
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
        tensor.copy_(placed_as(tensor, source[name]))
