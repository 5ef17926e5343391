"""What image encoders are shown: Pillow's resize of 8-bit pictures, for a batch of tensors, on any device that has float64, with a gradient.

The networks were trained, and their published scores made, on pictures that Pillow had resized. A resize of floats differs from that by a
level of 255 here and there, and the score with it. Here every pixel is Pillow's, since its arithmetic is one of integers: coefficients with
`BITS` fractional bits, one pass for each side, rounded and clipped to 8 bit after each. Products and sums of such numbers are exact in
float64, in whatever order a matrix product takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Filter = Literal["bicubic", "bilinear"]
Doubles = npt.NDArray[np.float64]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

BITS = 22
"""Fractional bits of Pillow's coefficients: 32, less 8 for the pixel and 2 for overshoot (`PRECISION_BITS` in its Resample.c)."""

PART = 8
"""Pictures that are held in float64 at once: 0.2 GiB where they have 1024 x 1024 pixels."""


def preprocess(
    images_BCHW: Tensor,
    size: int,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
    resample: Filter = "bicubic",
) -> Tensor:
    """`Resize(size)`, `CenterCrop(size)`, `ToTensor` and `Normalize(mean, std)` of torchvision, of 8-bit pictures; CLIP's values unless others are given.

    Args:
        images_BCHW: RGB in [0, 1].
        size: of the square that comes out, in pixels.
        mean: of the channels.
        std: of the channels.
        resample: Pillow's filter.
    """
    return normalise(centre_crop(resize_short_side(images_BCHW, size, resample), size), mean, std)


def normalise(
    images_BCHW: Tensor,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> Tensor:
    """(x - mean) / std of each channel; CLIP's values unless others are given."""
    mean_CHW, std_CHW = (images_BCHW.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return (images_BCHW - mean_CHW) / std_CHW


def resize_short_side(images_BCHW: Tensor, size: int, resample: Filter = "bicubic") -> Tensor:
    """Resize such that the short side has `size` pixels; the long side's fraction is cut off, as torchvision does it."""
    height, width = images_BCHW.shape[-2:]
    long = int(size * max(height, width) / min(height, width))
    return resize(images_BCHW, (size, long) if height <= width else (long, size), resample)


def centre_crop(images_BCHW: Tensor, size: int) -> Tensor:
    """The square of `size` pixels in the middle; half a pixel goes to the even side, as `round` and torchvision have it."""
    top, left = (round((side - size) / 2) for side in images_BCHW.shape[-2:])
    return images_BCHW[..., top : top + size, left : left + size]


def resize(images_BCHW: Tensor, size: tuple[int, int], resample: Filter = "bicubic") -> Tensor:
    """Pillow's `Image.resize` of 8-bit pictures, level by level; its gradient is that of the resampling without rounding and clipping.

    Args:
        images_BCHW: in [0, 1]; what is not on the grid of 8 bit is rounded to it.
        size: height and width that come out.
        resample: filter, widened where the picture gets smaller (antialiasing).

    Returns:
        Of the dtype that came in, multiples of 1/255 in [0, 1].
    """
    if tuple(images_BCHW.shape[-2:]) == size:
        return to_8bit(images_BCHW)
    rows, columns = (
        torch.from_numpy(coefficients(before, after, resample)).to(images_BCHW.device)
        for before, after in zip(images_BCHW.shape[-2:], size, strict=True)
    )
    resized: Tensor = _Resize.apply(images_BCHW, rows, columns)
    return resized


def to_8bit(images: Tensor) -> Tensor:
    """The nearest multiple of 1/255 in [0, 1]; the gradient passes as if it were not there."""
    rounded: Tensor = _To8Bit.apply(images)
    return rounded


@lru_cache(maxsize=64)
def coefficients(before: int, after: int, resample: Filter) -> Doubles:
    """What each pixel of a side of `after` takes from one of `before`, [after, before], multiples of 2**-BITS.

    Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, with its order of operations, as a dense matrix.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    kernel, reach = _KERNELS[resample]
    centre = (np.arange(after) + 0.5) * scale
    first = np.maximum((centre - reach * stretch + 0.5).astype(int), 0)
    end = np.minimum((centre + reach * stretch + 0.5).astype(int), before)
    matrix, total = np.zeros((after, before)), np.zeros(after)
    rows = np.arange(after)
    for tap in range(int((end - first).max())):
        inside = rows[first + tap < end]
        column = first[inside] + tap
        matrix[inside, column] = kernel(np.abs((column - centre[inside] + 0.5) * (1.0 / stretch)))
        total[inside] += matrix[inside, column]
    normed = matrix / total[:, None] * 2**BITS
    exact: Doubles = np.trunc(normed + np.copysign(0.5, normed)) / 2**BITS
    return exact


def _bicubic(distance: Doubles) -> Doubles:
    """Keys' cubic convolution with a = -1/2."""
    a = -0.5
    near = ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _bilinear(distance: Doubles) -> Doubles:
    return np.maximum(1.0 - distance, 0.0)


_KERNELS: dict[Filter, tuple[Callable[[Doubles], Doubles], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}


def _passes(rows: Tensor, columns: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """Along the rows, then along the columns; since Pillow 13.0 (its pull request 9549) the other way round where height shrinks far more than width."""
    (height_after, height), (width_after, width) = rows.shape, columns.shape
    passes = [lambda levels: levels @ columns.T, lambda levels: rows @ levels]
    shrinks_more = height_after < height and height - height_after > 2 * (width - width_after)
    return passes[::-1] if shrinks_more else passes


def _resampled(images_BCHW: Tensor, passes: list[Callable[[Tensor], Tensor]]) -> Tensor:
    levels = (images_BCHW * 255).round().clamp(0, 255).double()
    for one_pass in passes:
        levels = (one_pass(levels) + 0.5).floor().clamp(0, 255)
    return levels.to(images_BCHW.dtype) / 255


class _To8Bit(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, images: Tensor) -> Tensor:
        return (images * 255).round().clamp(0, 255) / 255

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images_BCHW: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns)
        passes = _passes(rows, columns)
        return torch.cat([_resampled(part, passes) for part in images_BCHW.split(PART)])

    @staticmethod
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = (weights.to(gradient_BCHW.dtype) for weights in ctx.saved_tensors)
        return rows.T @ gradient_BCHW @ columns, None, None
