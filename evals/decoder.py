"""From latents to pictures, with a graph and without."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from evals.arithmetic import arithmetic, micro_batches, padded

DecoderPrecision = Literal["fp32", "tf32", "bf16"]
Kept = Literal["nothing", "checkpoints", "everything"]
"""What a decoder keeps for a gradient."""

SHARE = 0.4
"""Of a device's memory, for what the decoder holds of pictures; the rest is for models, their training and scorers (ours)."""
NUMBERS: dict[Kept, float] = {"nothing": 4.77, "checkpoints": 13.2, "everything": 23.3}
"""Float32 numbers that it holds at once of a picture, by pixel and by channel of the widest layer that has as many rows and columns as the picture: counted
of Stable Diffusion's (`bench.activations`)."""


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


def memory_of(device: torch.device) -> int:
    """Bytes that it has in all. Not those that are free, so that the same command decodes alike the next time."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bytes_of_a_picture(vae: Any, rows: int, columns: int, kept: Kept = "nothing") -> float:
    """What the decoder holds of a picture of so many rows and columns of latents, in float32."""
    channels: Sequence[int] = vae.config.block_out_channels
    size: int = rows * columns * 4 ** (len(channels) - 1)
    return 4 * NUMBERS[kept] * max(channels[:2]) * size


def at_a_time(
    vae: Any, latents_BCHW: Tensor, asked: int, precision: DecoderPrecision, kept: Kept = "nothing"
) -> int:
    """Pictures to decode at a time: as many as asked, or as fit into `SHARE` of the device's memory where these are fewer.

    A decoder in bf16 is given as many as asked: it rounds by grey levels, in another way for each size of batch.
    """
    if precision == "bf16":
        return asked
    device = next(vae.parameters()).device
    rows, columns = latents_BCHW.shape[2:]
    fit = int(SHARE * memory_of(device) / bytes_of_a_picture(vae, rows, columns, kept))
    return max(1, min(asked, fit))


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
    """The same, on the CPU, without a graph, and a micro-batch at a time or as many as fit (`at_a_time`)."""
    device = next(vae.parameters()).device
    micro_batch = at_a_time(vae, latents_BCHW, micro_batch, precision)
    images = []
    for rows in micro_batches(len(latents_BCHW), micro_batch):
        given = latents_BCHW[rows].to(device)
        picture = padded(lambda z: pixels(vae, z, precision), micro_batch, given)
        images.append(picture[: len(given)].cpu())
    return torch.cat(images)
