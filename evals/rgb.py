"""A picture in RGB, as scorers read it and pages show it; needs no framework."""

from __future__ import annotations

from PIL import Image


def as_rgb(picture: Image.Image) -> tuple[Image.Image, str]:
    """A picture in RGB and what was done for it: what is transparent is laid over white, as a browser shows it; palette, grey and CMYK are converted."""
    if picture.has_transparency_data:
        over = Image.new("RGBA", picture.size, "white")
        over.alpha_composite(picture.convert("RGBA"))
        return over.convert("RGB"), "transparency laid over white"
    if picture.mode == "RGB":
        return picture, ""
    return picture.convert("RGB"), f"{picture.mode} converted to RGB"
