"""From latents to pictures, with a graph and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from evals.arithmetic import arithmetic, micro_batches, padded

DecoderPrecision = Literal["fp32", "tf32", "bf16"]


def check(precision: DecoderPrecision, device: torch.device) -> None:
    """Refuse a precision that the device has not.

    Raises:
        ValueError: naming the field and the choices.
    """
    if precision != "tf32" or (device.type == "cuda" and torch.cuda.is_tf32_supported()):
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    raise ValueError(
        f"sampling.decoder_precision is tf32, which NVIDIA's GPUs have from Ampere on, but this process computes on {name}: use fp32 or bf16"
    )


@contextmanager
def arithmetic_of(precision: DecoderPrecision, device: torch.device) -> Iterator[None]:
    """Context in which a float32 decoder's convolutions and matrix products are of that precision; float32 is what `exact_device` has made of it."""
    if precision != "tf32":
        with arithmetic(precision, device):
            yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def pixels(vae: Any, latents_BCHW: Tensor, precision: DecoderPrecision = "fp32") -> Tensor:
    """Latents to images, with a graph where gradients are on: float32 RGB in [0, 1], [B, 3, H, W], on the device.

    Args:
        vae: the decoder.
        latents_BCHW: on its device.
        precision: of its convolutions and matrix products.
    """
    scaled = latents_BCHW.to(next(vae.parameters()).dtype) / vae.config.scaling_factor
    with arithmetic_of(precision, latents_BCHW.device):
        picture: Tensor = vae.decode(scaled, return_dict=False)[0]
    return (picture.float() / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def decode(vae: Any, latents_BCHW: Tensor, micro_batch: int, precision: DecoderPrecision = "fp32") -> Tensor:
    """The same, some at a time and without a graph, on the CPU."""
    device = next(vae.parameters()).device
    images = []
    for rows in micro_batches(len(latents_BCHW), micro_batch):
        given = latents_BCHW[rows].to(device)
        picture = padded(lambda z: pixels(vae, z, precision), micro_batch, given)
        images.append(picture[: len(given)].cpu())
    return torch.cat(images)
