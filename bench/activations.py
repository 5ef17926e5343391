"""What each full-size model needs of memory beside its weights, forward and backward of the denoiser and of the decoder: `python -m bench.activations`.

Counted, not measured: every allocation is followed on tensors without content, on any machine. No GPU is needed because three
things that a GPU does are done here: under autocast its normalisations compute in float32 and keep their input in float32; its attention keeps no
matrix of all pairs, nor does the CPU's; and cuDNN copies a convolution's input and output between layouts. Two sizes of a batch give the slope,
which is what it takes for each denoiser evaluation or picture, and the constant, which is mostly the copy of the weights in bf16. Written to
`results/bench/activations.json`, from which `train.resources` tells the memory of a run.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from evals.architectures import ARCHITECTURES, Architecture
from evals.decoder import DecoderPrecision, arithmetic_of, pixels
from evals.files import write_text
from train.records import ACTIVATIONS


def normalise_in_float32(model: nn.Module) -> None:
    """Give group and layer norm their input in float32, as CUDA's autocast does and the CPU's does not; the tests hold every module's type to it.

    In the model, not in a mode of PyTorch's: modes of functions are off while checkpointing computes again.
    """
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))


class Held(TorchDispatchMode):
    """Bytes of the tensors that are made in its context and still alive, and the most that they ever were.

    A convolution counts with copies of its input and output, for the length of its call: cuDNN's kernels work in another layout (NHWC) than
    PyTorch's usual one. Found from a measurement: with them a decoder of 16 pictures takes 19.0 GiB beside its weights, without them 12.0, and
    an H100 took 19.2.
    """

    def __init__(self, *there: Tensor) -> None:
        """Leave out what is there already, and what is written into it."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self._seen = {id(tensor.untyped_storage()) for tensor in there}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call it, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        copies = 0
        if func is torch.ops.aten.convolution.default:
            copies = args[0].nbytes + result.nbytes
        elif func is torch.ops.aten.convolution_backward.default:
            # of the output's gradient, and of the input or its gradient
            copies = args[0].nbytes + args[1].nbytes
        self.most = max(self.most, self.now + copies)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self._seen:
            self._seen.add(id(storage))
            self.now += storage.nbytes()
            weakref.finalize(storage, self._freed, id(storage), storage.nbytes()).atexit = False

    def _freed(self, seen: int, size: int) -> None:
        self._seen.remove(seen)
        self.now -= size


def update_bytes(architecture: Architecture, evaluations: int, checkpointing: bool) -> int:
    """Most memory that a pass of the update holds at once beside weights and gradients, in bf16.

    Args:
        architecture: whose denoiser it is.
        evaluations: latents in the batch, both branches of guidance counted.
        checkpointing: whether activations are computed again in the backward pass.
    """
    from diffusers import UNet2DConditionModel
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = architecture.unet
    side = config["sample_size"]
    with FakeTensorMode():
        unet = UNet2DConditionModel(**config).eval()
        normalise_in_float32(unet)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        for (
            weight
        ) in unet.parameters():  # those of an earlier micro-batch: the peak is that of what comes on top
            weight.grad = torch.zeros_like(weight)
        told: dict[str, Any] = {
            "encoder_hidden_states": torch.randn(evaluations, 77, config["cross_attention_dim"])
        }
        if "addition_embed_type" in config:
            pooled = torch.randn(evaluations, 1280)
            told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.randn(evaluations, 6)}
        latents = torch.randn(evaluations, 4, side, side)

        gradients = [weight.grad for weight in unet.parameters() if weight.grad is not None]
        held = Held(*unet.parameters(), *unet.buffers(), *gradients)
        with held:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = unet(latents, torch.tensor(500), return_dict=False, **told)[0]
            output.float().sum().backward()
    return held.most


def decoder_bytes(architecture: Architecture, pictures: int, precision: DecoderPrecision = "fp32") -> int:
    """Most memory that `evals.decoder.decode` holds at once beside weights: the pictures before are there until these are.

    Args:
        architecture: whose decoder it is.
        pictures: that are decoded at a time.
        precision: of its convolutions and matrix products; TF32's numbers are float32's.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    side, pixels = architecture.unet["sample_size"], architecture.pixels
    with FakeTensorMode():
        vae = decoder_of(architecture)
        latents = torch.randn(pictures, architecture.vae["latent_channels"], side, side)
        held = Held(*vae.parameters(), *vae.buffers())
        with torch.no_grad(), held:
            before = torch.empty(pictures, 3, pixels, pixels)
            with arithmetic_of(precision, latents.device):
                vae.decode(latents, return_dict=False)
            del before
    return held.most


def decoder_of(architecture: Architecture) -> Any:
    """Its decoder, frozen, normalising as on a GPU."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**architecture.vae).eval().requires_grad_(False)
    normalise_in_float32(vae)
    return vae


def decoder_gradient_bytes(
    architecture: Architecture, pictures: int, checkpointing: bool, precision: DecoderPrecision = "fp32"
) -> int:
    """Most memory that the decoder holds at once beside weights where a reward's gradient goes back through it to the latents.

    Args:
        architecture: whose decoder it is.
        pictures: that are decoded at a time.
        checkpointing: whether activations are computed again on the way back.
        precision: of its convolutions and matrix products.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    side = architecture.unet["sample_size"]
    with FakeTensorMode():
        vae = decoder_of(architecture)
        if checkpointing:
            vae.enable_gradient_checkpointing()
        latents = torch.randn(pictures, architecture.vae["latent_channels"], side, side, requires_grad=True)
        held = Held(*vae.parameters(), *vae.buffers())
        with held:
            images = pixels(vae, latents, precision)
            torch.autograd.grad(images.sum(), latents)
    return held.most


def line_through(bytes_of: Callable[[int], int], one: int, what: str) -> dict[str, int]:
    """Constant and slope of what a batch needs, from batches of `one` and of twice as many.

    Args:
        bytes_of: size of a batch to bytes.
        one: the smaller batch.
        what: its members, as the slope is named after.
    """
    small, large = bytes_of(one), bytes_of(2 * one)
    each = (large - small) / one
    return {"bytes": round(small - one * each), f"bytes_per_{what}": round(each)}


def ways(architecture: Architecture) -> dict[str, Callable[[], dict[str, int]]]:
    """What is counted of an architecture, by its name in the file."""
    plain, checkpointing = (partial(update_bytes, architecture, checkpointing=c) for c in (False, True))

    def of_decoder(bytes_of: Callable[..., int], **options: Any) -> Callable[[], dict[str, int]]:
        return lambda: line_through(partial(bytes_of, architecture, **options), 1, "picture")

    return {
        "decoder": of_decoder(decoder_bytes),
        "decoder_plain": of_decoder(decoder_gradient_bytes, checkpointing=False),
        "decoder_checkpointing": of_decoder(decoder_gradient_bytes, checkpointing=True),
        "decoder_bf16": of_decoder(decoder_bytes, precision="bf16"),
        "decoder_plain_bf16": of_decoder(decoder_gradient_bytes, checkpointing=False, precision="bf16"),
        "decoder_checkpointing_bf16": of_decoder(
            decoder_gradient_bytes, checkpointing=True, precision="bf16"
        ),
        "plain": lambda: line_through(plain, 2, "evaluation"),
        "checkpointing": lambda: line_through(checkpointing, 2, "evaluation"),
    }


def main() -> None:
    """Count what is not in the file yet."""
    found: dict[str, Any] = (
        json.loads(ACTIVATIONS.read_text(encoding="utf-8")) if ACTIVATIONS.is_file() else {}
    )
    cases = [(name, way) for name in ARCHITECTURES for way in ways(ARCHITECTURES[name])]
    for name, way in tqdm(cases, file=sys.stderr):
        if way in found.get(name, {}):
            continue
        found.setdefault(name, {})[way] = ways(ARCHITECTURES[name])[way]()
        ACTIVATIONS.parent.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps({"torch": torch.__version__, **found}, indent=1) + "\n", ACTIVATIONS)


if __name__ == "__main__":
    main()
