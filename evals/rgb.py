"""A picture in RGB, as scorers read it and pages show it; needs no framework."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

PNG = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH),
]
"""How a PNG is compressed."""


def as_rgb(picture: Image.Image) -> tuple[Image.Image, str]:
    """A picture in RGB and what was done for it.

    What is transparent is laid over white, as a browser shows it; grey of 16 bits is cut to 8, as Pillow cuts coloured ones (it would make white of all
    above 255); palette, grey and CMYK are converted.
    """
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB"), "16 bits cut to 8"
    if picture.has_transparency_data:
        over = Image.new("RGBA", picture.size, "white")
        over.alpha_composite(picture.convert("RGBA"))
        return over.convert("RGB"), "transparency laid over white"
    if picture.mode == "RGB":
        return picture, ""
    return picture.convert("RGB"), f"{picture.mode} converted to RGB"


def as_png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """RGB pixels as a PNG, and nothing else: what they were read from may say in its metadata what drew it.

    Written by OpenCV, with Paeth's filter and runs alone (zlib's Z_RLE): as small as Pillow's usual, in a fifth of the time.

    Raises:
        ValueError: the pixels are none of 8 bits in three channels.
    """
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
        raise ValueError(f"pixels are {pixels_HWC.dtype} {pixels_HWC.shape}, not uint8 [H, W, 3]")
    _, content = cv2.imencode(".png", cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2BGR), PNG)
    return content.tobytes()
